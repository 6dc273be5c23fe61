// The matrix product that all of attention is made of: a few rows times a few vectors of the result stay in registers.
#pragma once

#include "vectors.h"

// The largest tile whose sums fit the registers, besides a line of the right factor and a number of the left one: there
// are 32 with AVX-512 and NEON, else 16.
#if VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 4;
#elif VECTOR_BYTES == 32
constexpr int TILE_ROWS = 6, TILE_COLUMNS = 2;
#else
constexpr int TILE_ROWS = 4, TILE_COLUMNS = 2;
#endif

// How a product's factors lie in memory, in floats. Known when compiling, or the inner loop would count addresses.
//
// ROW, TERM: from a row of the left factor to the next, and from a term of a sum to the next.
// WIDTH: from a row of the right factor to the next, and from a row of the result.
template <int ROW, int TERM, int WIDTH>
struct Layout {
    // ROWS x (COLUMNS vectors) of the result: written if FRESH, else added to. Not inlined: compilers keep the sums
    // in registers when they see little else.
    template <int ROWS, int COLUMNS, bool FRESH>
    __attribute__((noinline)) static void tile(int64_t terms, const float* left, const float* right, float* into) {
        Vector sum[ROWS][COLUMNS];
        for (int row = 0; row < ROWS; ++row)
            for (int column = 0; column < COLUMNS; ++column)
                sum[row][column] = FRESH ? Vector{} : load(into + row * WIDTH + column * LANES);
        for (const float* end = right + terms * WIDTH; right != end; right += WIDTH, left += TERM) {
            Vector line[COLUMNS];
            for (int column = 0; column < COLUMNS; ++column) line[column] = load(right + column * LANES);
            for (int row = 0; row < ROWS; ++row) {
                Vector number = spread(left[row * ROW]);
                for (int column = 0; column < COLUMNS; ++column) sum[row][column] += number * line[column];
            }
        }
        for (int row = 0; row < ROWS; ++row)
            for (int column = 0; column < COLUMNS; ++column)
                store(into + row * WIDTH + column * LANES, sum[row][column]);
    }

    // ROWS x (columns vectors) of the result.
    template <int ROWS, bool FRESH>
    static void strip(int columns, int64_t terms, const float* left, const float* right, float* into) {
        for (int width; columns > 0; columns -= width, right += width * LANES, into += width * LANES) {
            // a vector by itself would wait for its own sums: five are three and two, not four and one
            width = columns == TILE_COLUMNS + 1 ? (columns + 1) / 2 : columns < TILE_COLUMNS ? columns : TILE_COLUMNS;
            if (width == 1) tile<ROWS, 1, FRESH>(terms, left, right, into);
            if (width == 2) tile<ROWS, 2, FRESH>(terms, left, right, into);
            if (TILE_COLUMNS > 2 && width == 3) tile<ROWS, 3, FRESH>(terms, left, right, into);
            if (TILE_COLUMNS > 3 && width == 4) tile<ROWS, 4, FRESH>(terms, left, right, into);
        }
    }

    // into (rows, columns vectors) = or += left (rows, terms) times right (terms, columns vectors); rows are a multiple
    // of 2. The right factor is read again for every few rows: it should fit the first-level cache.
    template <bool FRESH>
    static void product(int64_t rows, int columns, int64_t terms, const float* left, const float* right, float* into) {
        for (int64_t some; rows > 0; rows -= some, left += some * ROW, into += some * WIDTH) {
            some = rows < TILE_ROWS ? rows & ~1 : TILE_ROWS;
            if (some == 2) strip<2, FRESH>(columns, terms, left, right, into);
            if (some == 4) strip<4, FRESH>(columns, terms, left, right, into);
            if (TILE_ROWS > 4 && some == 6) strip<6, FRESH>(columns, terms, left, right, into);
        }
    }
};
