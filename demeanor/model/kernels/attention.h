// Attention of one row over the keys and values that its slot holds.
#pragma once
#include "products.h"

namespace {

// Keys and values of the first `shared` positions are read from elsewhere: a prefix that many slots have stays in the core's cache.
void attend(int64_t D, const float* q, const float* keys, const float* values, const float* shared_keys, const float* shared_values,
            int64_t shared, int64_t seen, float* scores, float* out) {
    const float scale = 1.0f / std::sqrt(float(D));
    float top = -INFINITY;
    for (int64_t j = 0; j < seen; j++) {
        scores[j] = dot(q, (j < shared ? shared_keys : keys) + j * D, D) * scale;
        top = scores[j] > top ? scores[j] : top;
    }
    V acc = {};
    for (int64_t j = seen; j < (seen + W - 1) / W * W; j++) scores[j] = -INFINITY;
    for (int64_t j = 0; j < seen; j += W) { V e = exp_(load(scores + j) - top); store(scores + j, e); acc += e; }
    const float inverse = 1.0f / sum(acc);
    int64_t d = 0;
    for (; d + 4 * W <= D; d += 4 * W) {
        V a = {}, b = {}, c = {}, e = {};
        for (int64_t j = 0; j < seen; j++) {
            const float* v = (j < shared ? shared_values : values) + j * D + d;
            const V p = all(scores[j]);
            a += p * load(v); b += p * load(v + W); c += p * load(v + 2 * W); e += p * load(v + 3 * W);
        }
        store(out + d, a * inverse); store(out + d + W, b * inverse); store(out + d + 2 * W, c * inverse); store(out + d + 3 * W, e * inverse);
    }
    for (; d + W <= D; d += W) {
        V a = {};
        for (int64_t j = 0; j < seen; j++) a += all(scores[j]) * load((j < shared ? shared_values : values) + j * D + d);
        store(out + d, a * inverse);
    }
    for (; d < D; d++) {
        float a = 0;
        for (int64_t j = 0; j < seen; j++) a = fused(scores[j], (j < shared ? shared_values : values)[j * D + d], a);
        out[d] = a * inverse;
    }
}

}  // namespace
