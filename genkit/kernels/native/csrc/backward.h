// The backward pass, all three gradients in one walk.
//
// Weights come from the scores and the log-sum-exp of the forward pass; dS = P * (dO V^T - delta) as in FlashAttention-2.
// The gradients of keys and values are sums in memory that one chain of calls adds to, so their order is fixed.
#pragma once

#include "walk.h"

struct BackwardCall {
    Visits visits;  // the gradient of the biased scores is left in place of a bias
    const float* q;  // (queries, DIM)
    int64_t q_stride;
    const float* d_out;  // (queries, DIM)
    int64_t d_out_stride;
    const float* lse;    // (queries), in powers of two; infinity for a query that sees nothing
    const float* delta;  // (queries): sum of dO * O, less the gradient of lse
    float* d_q;          // (queries, DIM)
    int64_t d_q_stride;
    float* d_k;     // (keys, DIM), to be added to; without the scale
    float* d_v;     // (keys, DIM), to be added to
    Number factor;  // scale of the scores
};

struct alignas(64) BackwardScratch {
    float turned[DIM][QUERIES], turned_grads[DIM][QUERIES];  // queries and gradients of their outputs
    float queries[QUERIES][DIM], grads[QUERIES][DIM];
    float weights[MOST_KEYS][QUERIES];  // scores at first
    float changes[MOST_KEYS][QUERIES];  // of the scores; what dO V^T is, at first
    float d_q[QUERIES][DIM];
    float lse[QUERIES], delta[QUERIES];
};

// With visits.rows, gradients of queries are added to, and left without the scale.
struct Backward {
    const BackwardCall& call;
    BackwardScratch& own;

    void start(const Group& group) {
        turn(group, call.q, call.q_stride, own.turned);
        turn(group, call.d_out, call.d_out_stride, own.turned_grads);
        for (int query = 0; query < group.columns() * LANES; ++query) {
            int64_t row = group.row(query);
            bool valid = query < group.count;
            memcpy(own.queries[query], line(call.q, call.q_stride, row), sizeof own.queries[query]);
            memcpy(own.grads[query], line(call.d_out, call.d_out_stride, row), sizeof own.grads[query]);
            if (group.rows) memcpy(own.d_q[query], line(call.d_q, call.d_q_stride, row), sizeof own.d_q[query]);
            else memset(own.d_q[query], 0, sizeof own.d_q[query]);
            own.lse[query] = valid ? call.lse[row] : __builtin_inff();
            own.delta[query] = valid ? call.delta[row] : 0.0f;
        }
    }

    void visit(const Group& group, const Visit& visit) {
        const Visits& visits = call.visits;
        int columns = group.columns();
        int64_t offset = visit.key * DIM, unit = visits.unit, queries = columns * LANES;
        fetch(visits.k, visit.next, unit);
        fetch(visits.v, visit.next, unit);
        score(visits, group, visit, own.turned, own.weights);
        Scores::product<true>(unit, columns, DIM, visits.v + offset, own.turned_grads[0], own.changes[0]);
        for (int column = 0; column < columns; ++column) differentiate(column * LANES);
        if (visits.bias) tell(group, visit);
        fetch(call.d_k, visit.next, unit);
        fetch(call.d_v, visit.next, unit);
        OverQueries::product<false>(unit, DIM / LANES, queries, own.weights[0], own.grads[0], call.d_v + offset);
        OverQueries::product<false>(unit, DIM / LANES, queries, own.changes[0], own.queries[0], call.d_k + offset);
        OverKeys::product<false>(queries, DIM / LANES, unit, own.changes[0], visits.k + offset, own.d_q[0]);
    }

    // Scores and slopes of LANES queries to weights and changes of the scores.
    void differentiate(int query) {
        Vector scale = spread(call.visits.scale.value), lse = load(own.lse + query), delta = load(own.delta + query);
        for (int64_t key = 0; key < call.visits.unit; ++key) {
            float *weights = own.weights[key] + query, *changes = own.changes[key] + query;
            Vector weight = exp2(load(weights) * scale - lse);
            store(weights, weight);
            store(changes, weight * (load(changes) - delta));
        }
    }

    // Leave the gradient of the scores in place of the bias.
    void tell(const Group& group, const Visit& visit) {
        int64_t width = call.visits.halves * HALF;
        float* bias = call.visits.bias + visit.place * width + group.half * HALF;
        for (int64_t key = 0; key < call.visits.unit; ++key)
            memcpy(bias + key * width, own.changes[key], group.columns() * LANES * sizeof(float));
    }

    void finish(const Group& group) {
        float factor = group.rows ? 1.0f : call.factor.value;
        for (int query = 0; query < group.count; ++query) {
            float* d_q = line(call.d_q, call.d_q_stride, group.row(query));
            for (int channel = 0; channel < DIM; channel += LANES)
                store(d_q + channel, factor * load(own.d_q[query] + channel));
        }
    }
};

static void backward(const BackwardCall& call, BackwardScratch& scratch) {
    Backward kernel{call, scratch};
    walk(call.visits, kernel);
}
