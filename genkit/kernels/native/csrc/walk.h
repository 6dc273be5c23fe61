// What all kernels share: their arguments, the walk over the visits of query blocks, and masks.
//
// Python lays the inputs out and says what is visited (genkit/kernels/native/attention/visits.py). Scores are computed
// with keys along the rows and queries along the columns: everything per query is then a vector, and keys are used as
// they lie in memory.
#pragma once

#include "product.h"

constexpr int QUERIES = 64;  // that run at once
constexpr int HALF = 32;     // whose bits fill a word of a mask
constexpr int MOST_KEYS = 64;
constexpr int DIM = HEAD_SIZE;  // channels of a head, a multiple of 16, given by whoever compiles
static_assert(DIM % 16 == 0, "whole vectors");

typedef Layout<DIM, 1, QUERIES> Scores;          // (keys, queries): keys (keys, DIM) times turned queries (DIM, queries)
typedef Layout<1, QUERIES, DIM> OverKeys;        // (queries, DIM): weights (keys, queries), turned, times keys (keys, DIM)
typedef Layout<QUERIES, 1, DIM> OverQueries;     // (keys, DIM): weights (keys, queries) times queries (queries, DIM)

// Every argument takes 8 bytes, in the order in which Python gives them.
struct Number {
    alignas(8) float value;
};

// Queries are rows of one head; strides are bytes from a row to the next.
struct Visits {
    const float* k;         // (keys, DIM)
    const float* v;         // (keys, DIM)
    const int64_t* starts;  // (blocks + 1): where the visits of each query block begin
    const int32_t* units;   // (visits): which unit of keys
    const int32_t* masks;   // (visits): which mask, or -1
    const int32_t* bits;    // (masks, halves, unit): a bit for every query of a half that sees the key
    const int64_t* valid;   // (blocks): valid queries of each block
    const int32_t* rows;    // (blocks * 64): where each query lies, if queries may lie anywhere, else null
    int64_t block;          // queries of a block
    int64_t halves;         // of a block, an even number
    int64_t unit;           // keys of a visit, a multiple of 4 up to 64
    int64_t first, last;    // blocks to work on: the first, and the one after the last
    float* bias;            // (visits of the one block * unit, halves * 32), in units of the scores, or null
    Number scale;           // of the scores, times log2(e)
};
static_assert(sizeof(Visits) == 15 * 8, "8 bytes each");

// Up to 64 neighbouring queries of a block.
struct Group {
    int64_t start;    // number of the first, counted over whole blocks
    int64_t count;    // valid queries
    int64_t half;     // which half of the block begins here
    const int32_t* rows;

    // Where a query lies; the last valid one stands for those that are not valid.
    int64_t row(int64_t query) const {
        int64_t here = start + (query < count ? query : count - 1);
        return rows ? rows[here] : here;
    }
    // Vectors that hold the valid queries.
    int columns() const { return int((count + LANES - 1) / LANES); }
};

template <class Element>
static inline Element* line(Element* rows, int64_t stride, int64_t row) {
    return (Element*)((uintptr_t)rows + row * stride);
}

// One visit of a group.
struct Visit {
    int64_t key;          // the first, counted in the memory of keys
    int64_t place;        // number of this visit within the block, times the unit
    const int32_t* seen;  // bits of the group's first half (unit), of its second one `unit` further on; or null
    int64_t next;         // the first key of the visit after this one
};

// Bring the keys or values of a unit nearer: lists may jump, which no processor foresees.
static inline void fetch(const float* rows, int64_t key, int64_t unit) {
    const char* from = (const char*)(rows + key * DIM);
    for (int64_t at = 0; at < unit * DIM * 4; at += 64) __builtin_prefetch(from + at, 0, 3);
}

// Calls kernel.start(group), kernel.visit(group, visit) for all its visits, kernel.finish(group), for every group.
template <class Kernel>
static inline void walk(const Visits& visits, Kernel& kernel) {
    for (int64_t block = visits.first; block < visits.last; ++block) {
        int64_t valid = visits.valid[block], begin = visits.starts[block], end = visits.starts[block + 1];
        for (int64_t done = 0; done < valid; done += QUERIES) {
            int64_t left = valid - done;
            Group group{block * visits.block + done, left < QUERIES ? left : QUERIES, done / HALF, visits.rows};
            kernel.start(group);
            for (int64_t at = begin; at < end; ++at) {
                int64_t mask = visits.masks[at];
                const int32_t* seen =
                    mask < 0 ? nullptr : visits.bits + (mask * visits.halves + group.half) * visits.unit;
                int64_t next = visits.units[at + 1 < end ? at + 1 : begin];
                kernel.visit(group, Visit{visits.units[at] * visits.unit, (at - begin) * visits.unit, seen, next * visits.unit});
            }
            kernel.finish(group);
        }
    }
}

// Rows (DIM) of a group as columns: into (DIM, QUERIES).
static inline void turn(const Group& group, const float* rows, int64_t stride, float (*into)[QUERIES]) {
    for (int query = 0; query < group.columns() * LANES; ++query) {
        const float* from = line(rows, stride, group.row(query));
        for (int channel = 0; channel < DIM; ++channel) into[channel][query] = from[channel];
    }
}

// Scores (unit, QUERIES) of a group with the keys of a visit: turned queries times keys, with the bias, -inf if hidden.
static inline void score(const Visits& visits, const Group& group, const Visit& visit, const float (*turned)[QUERIES],
                         float (*scores)[QUERIES]) {
    int columns = group.columns();
    Scores::product<true>(visits.unit, columns, DIM, visits.k + visit.key * DIM, turned[0], scores[0]);
    if (visits.bias) {
        int64_t width = visits.halves * HALF;
        const float* bias = visits.bias + visit.place * width + group.half * HALF;
        for (int64_t key = 0; key < visits.unit; ++key)
            for (int column = 0; column < columns; ++column) {
                float* here = scores[key] + column * LANES;
                store(here, load(here) + load(bias + key * width + column * LANES));
            }
    }
    if (!visit.seen) return;
    for (int column = 0; column < columns; ++column) {
        const int32_t* words = visit.seen + column * LANES / HALF * visits.unit;
        Words bit = spread(1) << (counted() + column * LANES % HALF);
        for (int64_t key = 0; key < visits.unit; ++key) {
            float* here = scores[key] + column * LANES;
            store(here, (spread(words[key]) & bit) != 0 ? load(here) : spread(-__builtin_inff()));
        }
    }
}

// What the threads of a batch see (genkit/kernels/native/batch.py), 8 bytes each. Chains are taken by whoever is free;
// the calls of a chain run one after the other.
struct Shared {
    int64_t next, slot, chains;
    const int64_t* starts;  // (chains + 1): where the calls of each chain begin
    const int64_t* values;  // (calls, arguments)
    char* scratch;          // for every thread
};

// Runs the kernel of `Call` in one thread until no chain is left.
template <class Call, class Scratch>
static inline void work(Shared* shared, void (*run)(const Call&, Scratch&)) {
    int64_t slot = __atomic_fetch_add(&shared->slot, 1, __ATOMIC_SEQ_CST);
    Scratch& scratch = ((Scratch*)shared->scratch)[slot];
    for (;;) {
        int64_t chain = __atomic_fetch_add(&shared->next, 1, __ATOMIC_SEQ_CST);
        if (chain >= shared->chains) return;
        for (int64_t at = shared->starts[chain]; at < shared->starts[chain + 1]; ++at)
            run(((const Call*)shared->values)[at], scratch);
    }
}
