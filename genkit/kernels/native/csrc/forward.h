// The forward pass.
//
// Running maxima and sums follow FlashAttention; as in FlashAttention-4 the output is rescaled only when a maximum has
// grown by more than a factor of 2^8, which happens in the first visits and seldom later.
#pragma once

#include "walk.h"

constexpr float LOWEST = -1e30f;  // running maximum before the first key; finite, so that a hidden key weighs 0
constexpr float SLACK = 8.0f;     // powers of two by which weights may exceed 1 before the output is rescaled

struct ForwardCall {
    Visits visits;
    const float* q;  // (queries, DIM)
    int64_t q_stride;
    float* out;  // (queries, DIM)
    int64_t out_stride;
    float* top;    // (queries): running maximum of the scores, in powers of two
    float* total;  // (queries): sum of 2^(score - top)
};

struct alignas(64) ForwardScratch {
    float turned[DIM][QUERIES];        // queries
    float scores[MOST_KEYS][QUERIES];  // then weights
    float output[QUERIES][DIM];
    float top[QUERIES], total[QUERIES];
};

// With visits.rows, queries go on from what they have found before: `top` and `total` are read, and `out` is left
// undivided.
struct Forward {
    const ForwardCall& call;
    ForwardScratch& own;

    void start(const Group& group) {
        turn(group, call.q, call.q_stride, own.turned);
        for (int query = 0; query < group.columns() * LANES; ++query) {
            bool more = group.rows != nullptr;
            int64_t row = group.row(query);
            own.top[query] = more ? call.top[row] : LOWEST;
            own.total[query] = more ? call.total[row] : 0.0f;
            if (more) memcpy(own.output[query], line(call.out, call.out_stride, row), sizeof own.output[query]);
            else memset(own.output[query], 0, sizeof own.output[query]);
        }
    }

    void visit(const Group& group, const Visit& visit) {
        fetch(call.visits.k, visit.next, call.visits.unit);
        score(call.visits, group, visit, own.turned, own.scores);
        fetch(call.visits.v, visit.next, call.visits.unit);
        for (int column = 0; column < group.columns(); ++column) weigh(column * LANES);
        OverKeys::product<false>(group.columns() * LANES, DIM / LANES, call.visits.unit, own.scores[0],
                                 call.visits.v + visit.key * DIM, own.output[0]);
    }

    // Scores of LANES queries to weights.
    void weigh(int query) {
        int64_t unit = call.visits.unit;
        Vector scale = spread(call.visits.scale.value), old = load(own.top + query);
        Vector best[4];  // one alone would wait for itself
        for (int i = 0; i < 4; ++i) best[i] = load(own.scores[i] + query);
        for (int64_t key = 4; key < unit; key += 4)
            for (int i = 0; i < 4; ++i) best[i] = larger(best[i], load(own.scores[key + i] + query));
        Vector top = larger(larger(larger(best[0], best[1]), larger(best[2], best[3])) * scale, old);
        if (any(top > old + SLACK)) rescale(query, old, top);
        else top = old;
        Vector sum[4] = {};
        for (int64_t key = 0; key < unit; key += 4)
            for (int i = 0; i < 4; ++i) {
                float* here = own.scores[key + i] + query;
                Vector weight = exp2(load(here) * scale - top);
                store(here, weight);
                sum[i] += weight;
            }
        store(own.total + query, load(own.total + query) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }

    // Bring the sums and outputs of LANES queries to new maxima.
    void rescale(int query, Vector old, Vector top) {
        Vector shrink = exp2(old - top);
        store(own.top + query, top);
        store(own.total + query, shrink * load(own.total + query));
        for (int lane = 0; lane < LANES; ++lane)
            for (int channel = 0; channel < DIM; channel += LANES) {
                float* here = own.output[query + lane] + channel;
                store(here, shrink[lane] * load(here));
            }
    }

    void finish(const Group& group) {
        for (int query = 0; query < group.count; ++query) {
            int64_t row = group.row(query);
            float total = own.total[query], share = group.rows ? 1.0f : total != 0 ? 1.0f / total : 0.0f;
            float* out = line(call.out, call.out_stride, row);
            for (int channel = 0; channel < DIM; channel += LANES)
                store(out + channel, share * load(own.output[query] + channel));
            call.top[row] = own.top[query];
            call.total[row] = total;
        }
    }
};

static void forward(const ForwardCall& call, ForwardScratch& scratch) {
    Forward kernel{call, scratch};
    walk(call.visits, kernel);
}
