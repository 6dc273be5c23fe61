// Vectors of floats in the compiler's own notation: one source for AVX-512, AVX2, NEON and whatever else there is.
//
// VECTOR_BYTES is given by whoever compiles: 64 with AVX-512, 32 with AVX2, 16 elsewhere. No option that lets the
// compiler forget about infinities may be on: -inf is a hidden pair, and what is no number has to stay visible.
#pragma once

#include <stdint.h>
#include <string.h>

constexpr int LANES = VECTOR_BYTES / 4;

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Words __attribute__((vector_size(VECTOR_BYTES)));

static inline Vector load(const float* from) {
    Vector x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void store(float* to, Vector x) { memcpy(to, &x, sizeof x); }

static inline Vector spread(float x) { return x - Vector{}; }

static inline Words spread(int32_t x) { return x - Words{}; }

// Element by element; b where one of them is no number.
static inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

static inline bool any(Words truth) {
    int64_t parts[VECTOR_BYTES / 8], found = 0;
    memcpy(parts, &truth, sizeof truth);
    for (int64_t part : parts) found |= part;
    return found != 0;
}

// 0, 1, 2 and so on.
static inline Words counted() {
    Words x;
    for (int lane = 0; lane < LANES; ++lane) x[lane] = lane;
    return x;
}

// 2^x to about a rounding, for x below 128; exactly 0 from 2^-127 down and for -inf, no number for none.
static inline Vector exp2(Vector x) {
    // Added to a number that is small beside it, this rounds to a whole number n and leaves n + 127, the exponent of the
    // float 2^n, in the last bits.
    constexpr float ROUND = 12582912.0f + 127.0f;  // 1.5 * 2^23
    Vector held = larger(spread(-127.0f), x);
    Vector shifted = held + ROUND;
    Vector rest = held - (shifted - ROUND);  // in [-1/2, 1/2]
    // 2^rest with the smallest relative error, 2e-9, highest power first
    Vector power = spread(1.53533619e-4f);
    power = power * rest + 1.33988744e-3f;
    power = power * rest + 9.61843736e-3f;
    power = power * rest + 5.55033247e-2f;
    power = power * rest + 2.40226479e-1f;
    power = power * rest + 6.93147203e-1f;
    power = power * rest + 1.0f;
    Words exponent;
    memcpy(&exponent, &shifted, sizeof exponent);
    exponent <<= 23;
    Vector whole;  // 2^n, and 0 for n = -127
    memcpy(&whole, &exponent, sizeof whole);
    return power * whole;
}
