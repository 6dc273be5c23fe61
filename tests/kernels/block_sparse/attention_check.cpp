// A program that compares the kernels with sums in double, for processors that Python's tests do not run on.
//
//   c++ -O3 -DVECTOR_BYTES=16 -DHEAD_SIZE=64 -I genkit/kernels/native/csrc attention_check.cpp && ./a.out
//
// Blocks of 100 queries and units of 28 keys, ragged ends, full, partial and missing blocks, a bias, a query that sees
// nothing. Prints the largest error of every result; exits with 1 when one is above 2e-5.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "backward.h"
#include "forward.h"

const int N = 230, BLOCK = 100, BLOCKS = 3, UNIT = 28, UNITS = 5, KEYS = UNIT * UNITS, HALVES = 4;
const double LOG2E = 1.4426950408889634, SCALE = 0.3;

static float q[N][DIM], k[KEYS][DIM], v[KEYS][DIM], out[N][DIM], d_out[N][DIM], d_q[N][DIM], d_k[KEYS][DIM], d_v[KEYS][DIM];
static float top[N], total[N], lse[N + QUERIES], delta[N + QUERIES], bias[UNITS * UNIT][HALVES * HALF];
static double exact[N][DIM], x_q[N][DIM], x_k[KEYS][DIM], x_v[KEYS][DIM], x_lse[N];
static bool seen[N][KEYS];
alignas(64) static ForwardScratch forward_scratch;
alignas(64) static BackwardScratch backward_scratch;

static float noise() { return float(rand() % 20001 - 10000) / 10000; }

template <class Table>
static void fill(Table& table) {
    for (auto& row : table)
        for (float& x : row) x = noise();
}

static double worst;
static void compare(const char* name, const float* found, const double* wanted, int count) {
    double error = 0;
    for (int i = 0; i < count; ++i) error = fmax(error, found[i] == wanted[i] ? 0 : fabs(found[i] - wanted[i]));
    printf("%s %.2g\n", name, error);
    worst = fmax(worst, error == error ? error : 1);
}

int main() {
    fill(q), fill(k), fill(v), fill(d_out);
    static int64_t starts[BLOCKS + 1], valid[BLOCKS] = {100, 100, 30};
    static int32_t units[BLOCKS * UNITS], masks[BLOCKS * UNITS], bits[BLOCKS * UNITS][HALVES][UNIT];
    int visits = 0, made = 0;
    for (int block = 0; block < BLOCKS; ++block) {
        for (int unit = 0; unit < UNITS; ++unit) {
            if ((block + unit) % 3 == 1) continue;  // not visited
            bool partial = (block + unit) % 3 == 2;
            for (int i = 0; i < valid[block]; ++i)
                for (int j = 0; j < UNIT; ++j) {
                    int query = block * BLOCK + i;
                    bool shown = !partial || (query != 7 && (query * 5 + j * 3) % 4 != 0);
                    seen[query][unit * UNIT + j] = shown;
                    if (partial && shown) bits[made][i / HALF][j] |= int32_t(1u << i % HALF);
                }
            units[visits] = unit;
            masks[visits++] = partial ? made++ : -1;
        }
        starts[block + 1] = visits;
    }
    // query 7 sees nothing: its block is visited in partial units alone
    for (int at = 0; at < starts[1]; ++at)
        if (masks[at] < 0) {
            masks[at] = made;
            for (int i = 0; i < 100; ++i)
                for (int j = 0; j < UNIT; ++j) {
                    seen[i][units[at] * UNIT + j] = i != 7;
                    if (i != 7) bits[made][i / HALF][j] |= int32_t(1u << i % HALF);
                }
            ++made;
        }
    for (int query = 0; query < N; ++query) {
        double sum = 0, row = 0, weight[KEYS];
        for (int j = 0; j < KEYS; ++j) {
            double s = 0;
            for (int c = 0; c < DIM; ++c) s += double(q[query][c]) * k[j][c];
            weight[j] = seen[query][j] ? exp(s * SCALE) : 0;
            sum += weight[j];
        }
        x_lse[query] = sum ? log(sum) * LOG2E : -INFINITY;
        for (int j = 0; j < KEYS; ++j) weight[j] = sum ? weight[j] / sum : 0;
        for (int c = 0; c < DIM; ++c) {
            for (int j = 0; j < KEYS; ++j) exact[query][c] += weight[j] * v[j][c];
            row += exact[query][c] * d_out[query][c];
        }
        delta[query] = float(row);
        for (int j = 0; j < KEYS; ++j) {
            double slope = 0;
            for (int c = 0; c < DIM; ++c) slope += double(d_out[query][c]) * v[j][c];
            double change = weight[j] * (slope - row);
            for (int c = 0; c < DIM; ++c) {
                x_q[query][c] += change * k[j][c] * SCALE;
                x_k[j][c] += change * q[query][c];
                x_v[j][c] += weight[j] * d_out[query][c];
            }
        }
    }
    Visits all{k[0], v[0], starts, units, masks, bits[0][0], valid, nullptr, BLOCK, HALVES, UNIT, 0, BLOCKS, nullptr,
               {float(SCALE * LOG2E)}};
    int64_t stride = sizeof q[0];
    forward(ForwardCall{all, q[0], stride, out[0], stride, top, total}, forward_scratch);
    for (int i = 0; i < N; ++i) lse[i] = total[i] ? top[i] + log2f(total[i]) : -INFINITY;
    compare("out", out[0], exact[0], N * DIM);
    compare("lse", lse, x_lse, N);
    for (int i = 0; i < N + QUERIES; ++i)
        if (i >= N || lse[i] == -INFINITY) lse[i] = INFINITY;
    // a bias of zeros changes nothing, and is left as the gradient of the scores, which sums to 0 for every query
    for (int block = 0; block < BLOCKS; ++block) {
        Visits one = all;
        one.first = block, one.last = block + 1, one.bias = bias[0];
        memset(bias, 0, sizeof bias);
        backward(BackwardCall{one, q[0], stride, d_out[0], stride, lse, delta, d_q[0], stride, d_k[0], d_v[0],
                              {float(SCALE)}},
                 backward_scratch);
        float sums[BLOCK] = {};
        double zeros[BLOCK] = {};
        for (int i = 0; i < valid[block]; ++i)
            for (auto& row : bias) sums[i] += row[i];
        compare("d_bias", sums, zeros, BLOCK);
    }
    compare("d_q", d_q[0], x_q[0], N * DIM);
    compare("d_k", d_k[0], x_k[0], KEYS * DIM);
    compare("d_v", d_v[0], x_v[0], KEYS * DIM);
    return worst < 2e-5 ? 0 : 1;
}
