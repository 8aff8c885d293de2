// Attention over token trees for training: causal segments behind context ranges, forward and backward.
//
// Factors of products are bf16, their sums and everything between them fp32. A unit is one tree and one kv head; one thread computes
// it, in an order that the tree alone decides. Blocks of QUERIES rows read all their keys at once: scores, softmax, mix. The backward
// pass makes the scores again from the logarithm of each row's sum. Two bf16 that are multiplied one after the other lie in 32 bits.
#pragma once
#include "vectors.h"

namespace {

constexpr int QUERIES = 48;
#if defined(__AVX512F__)
constexpr int TALL = 6, BROAD = 4;  // rows and vectors of sums that stay in registers
#else
constexpr int TALL = 4, BROAD = 2;
#endif
constexpr int PANEL = BROAD * W;  // columns of a transposed matrix that lie together
constexpr float HIDDEN = -3.0e38f;

inline V multiplied(V sums, uint32_t a, U b) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<V>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(_mm512_set1_epi32(int(a))), reinterpret_cast<__m512bh>(b)));
#else
    const uint32_t low = a << 16, high = a & 0xffff0000u;
    float first, second;
    memcpy(&first, &low, 4);
    memcpy(&second, &high, 4);
    sums += second * reinterpret_cast<V>(b & 0xffff0000u);
    return sums + first * reinterpret_cast<V>(b << 16);
#endif
}

// R x N vectors of C (= or +=) the sum over pairs k of A(i, k) B(k, j); A(i, k) is a[i * rows + k * columns].
template <int R, int N>
inline void tile(const uint32_t* a, int64_t rows, int64_t columns, const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t depth, bool add) {
    V sums[R][N];
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sums[i][n] = add ? load(c + i * ldc + n * W) : V{};
    for (int64_t k = 0; k < depth; k++) {
        U line[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) line[n] = load(b + k * ldb + n * W);
#pragma GCC unroll 6
        for (int i = 0; i < R; i++)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sums[i][n] = multiplied(sums[i][n], a[i * rows + k * columns], line[n]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) store(c + i * ldc + n * W, sums[i][n]);
}

template <int R>
inline void strip(const uint32_t* a, int64_t rows, int64_t columns, const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t depth, int64_t vectors, bool add) {
    int64_t n = 0;
    for (; n + BROAD <= vectors; n += BROAD) tile<R, BROAD>(a, rows, columns, b + n * W, ldb, c + n * W, ldc, depth, add);
    for (; n < vectors; n++) tile<R, 1>(a, rows, columns, b + n * W, ldb, c + n * W, ldc, depth, add);
}

// `count` rows of C, `vectors` vectors wide.
inline void product(const uint32_t* a, int64_t rows, int64_t columns, const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t count, int64_t depth, int64_t vectors, bool add) {
    int64_t i = 0;
    for (; i + TALL <= count; i += TALL) strip<TALL>(a + i * rows, rows, columns, b, ldb, c + i * ldc, ldc, depth, vectors, add);
    for (; i + 2 <= count; i += 2) strip<2>(a + i * rows, rows, columns, b, ldb, c + i * ldc, ldc, depth, vectors, add);
    for (; i < count; i++) strip<1>(a + i * rows, rows, columns, b, ldb, c + i * ldc, ldc, depth, vectors, add);
}

// The same with a B that lies transposed in panels: PANEL columns of all `depth` pairs, then the next.
inline void product_across(const uint32_t* a, const uint32_t* b, float* c, int64_t ldc, int64_t count, int64_t depth, int64_t vectors) {
    for (int64_t n = 0; n < vectors; n += BROAD)
        product(a, depth, 1, b + n * W * depth, PANEL, c + n * W, ldc, count, depth, vectors - n < BROAD ? vectors - n : BROAD, false);
}

// Segments as numbers. Unit: first segment, end of its segments, first token, end of its tokens. Segment: first query, end of its queries, first
// range, end of its ranges, keys. Range: first key, end of its keys; the last range of a segment is its own.
struct Forest { const int64_t *units, *segments, *ranges; };
struct Heads { int64_t heads, kv, depth; };

// Memory of one thread. Rows hold pairs along a row; *_across are transposed, *_pairs hold two rows, one below the other.
struct Scratch {
    Floats scores, slopes, outputs, dkeys, dvalues, all_dkeys, all_dvalues;
    std::vector<uint32_t> keys_across, values_across, key_pairs, value_pairs, queries, query_pairs, changes, change_pairs, weights, weight_pairs, turns, turn_pairs;
    template <class T> static auto room(T& of, int64_t count) {
        if (int64_t(of.size()) < count) of.resize(count);
        return of.data();
    }
};

inline U rounded(V x) {  // bf16 in the upper half
    U bits = reinterpret_cast<U>(x);
    return (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xffff0000u;
}
inline U paired(V first, V second) { return (rounded(first) >> 16) | rounded(second); }
inline void store(uint32_t* p, U x) { *reinterpret_cast<UU*>(p) = x; }
inline void narrow_to(uint16_t* p, V x) { *reinterpret_cast<B2*>(p) = __builtin_convertvector(rounded(x) >> 16, B2); }
inline U two_rows(const uint16_t* first, const uint16_t* second) {
    const U below = second ? __builtin_convertvector(*reinterpret_cast<const B2*>(second), U) << 16 : U{};
    return __builtin_convertvector(*reinterpret_cast<const B2*>(first), U) | below;
}

// Keys (or values) of a segment and one kv head: transposed in panels, and as pairs of keys, if wanted. What is past the end is zero.
inline void gather(const Forest& forest, const int64_t* segment, const uint16_t* x, const Heads& of, int64_t head, uint32_t* across, uint32_t* pairs) {
    const int64_t D = of.depth;
    int64_t at = 0;
    const uint16_t* above = nullptr;
    for (int64_t r = segment[2]; r < segment[3]; r++)
        for (int64_t t = forest.ranges[2 * r]; t < forest.ranges[2 * r + 1]; t++, at++) {
            const uint16_t* from = x + (t * of.kv + head) * D;
            if (pairs) {
                uint32_t* to = pairs + at / 2 * D;
                for (int64_t d = 0; d < D; d += W) store(to + d, at % 2 ? two_rows(above + d, from + d) : two_rows(from + d, nullptr));
                above = from;
            }
            if (across) {
                uint32_t* to = across + at / PANEL * PANEL * (D / 2) + at % PANEL;
                for (int64_t d = 0; d < D / 2; d++) memcpy(to + d * PANEL, from + 2 * d, 4);
            }
        }
    if (across)
        for (; at % PANEL; at++)
            for (int64_t d = 0; d < D / 2; d++) across[at / PANEL * PANEL * (D / 2) + at % PANEL + d * PANEL] = 0;
}

// Rows of one head, as rows and as pairs of rows, if wanted.
inline void take(const uint16_t* x, int64_t stride, uint32_t* out, uint32_t* pairs, int64_t count, int64_t D) {
    for (int64_t i = 0; i < count; i++) memcpy(out + i * (D / 2), x + i * stride, D * sizeof(uint16_t));
    if (pairs)
        for (int64_t i = 0; i < count; i += 2)
            for (int64_t d = 0; d < D; d += W) store(pairs + i / 2 * D + d, two_rows(x + i * stride + d, i + 1 < count ? x + (i + 1) * stride + d : nullptr));
}

// A block of queries of a segment: `rows` from `first` on; the last of them reads `most` keys.
struct Block { int64_t first, rows, seen, most, vectors; };
inline Block block(const int64_t* segment, int64_t first) {
    const int64_t rows = segment[1] - first < QUERIES ? segment[1] - first : QUERIES, before = segment[4] - (segment[1] - segment[0]);
    const int64_t seen = before + first - segment[0], most = seen + rows;
    return {first, rows, seen, most, (most + W - 1) / W};
}

inline float greatest(V x) {
    float m = x[0];
    for (int i = 1; i < W; i++) m = x[i] > m ? x[i] : m;
    return m;
}

inline void attend_unit(const Forest& forest, const int64_t* unit, const Heads& of, int64_t kv_head, const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, float* logs) {
    thread_local Scratch own;
    const int64_t D = of.depth, group = of.heads / of.kv, stride = of.heads * D;
    const float scale = 1.0f / sqrtf(float(D));
    float sums[QUERIES];
    for (int64_t s = unit[0]; s < unit[1]; s++) {
        const int64_t *segment = forest.segments + 5 * s, ld = (segment[4] + PANEL - 1) / PANEL * PANEL + W;
        uint32_t *across = own.room(own.keys_across, ld * D / 2), *values = own.room(own.value_pairs, ld * D / 2);
        float *scores = own.room(own.scores, QUERIES * ld), *outputs = own.room(own.outputs, QUERIES * D);
        uint32_t *weights = own.room(own.weights, QUERIES * ld / 2), *queries = own.room(own.queries, QUERIES * D / 2);
        gather(forest, segment, k, of, kv_head, across, nullptr);
        gather(forest, segment, v, of, kv_head, nullptr, values);
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            for (int64_t a = segment[0]; a < segment[1]; a += QUERIES) {
                const Block b = block(segment, a);
                take(q + a * stride + h * D, stride, queries, nullptr, b.rows, D);
                product_across(queries, across, scores, ld, b.rows, D / 2, b.vectors);
                for (int64_t i = 0; i < b.rows; i++) {
                    float* x = scores + i * ld;
                    uint16_t* p = reinterpret_cast<uint16_t*>(weights + i * ld / 2);
                    const int64_t mine = b.seen + i + 1, wide = (mine + W - 1) / W * W;
                    for (int64_t j = mine; j < wide; j++) x[j] = HIDDEN;
                    V high = all(HIDDEN), total = {};
                    for (int64_t j = 0; j < wide; j += W) { V y = load(x + j); high = y > high ? y : high; }
                    const float top = greatest(high);
                    for (int64_t j = 0; j < wide; j += W) { V y = exp_((load(x + j) - top) * scale); narrow_to(p + j, y); total += y; }
                    for (int64_t j = wide; j < b.vectors * W; j++) p[j] = 0;
                    const float found = sum(total);
                    logs[(a + i) * of.heads + h] = top * scale + logf(found);
                    sums[i] = 1.0f / found;
                }
                product(weights, ld / 2, 1, values, D, outputs, D, b.rows, (b.most + 1) / 2, D / W, false);
                for (int64_t i = 0; i < b.rows; i++)
                    for (int64_t d = 0; d < D; d += W) narrow_to(out + (a + i) * stride + h * D + d, load(outputs + i * D + d) * sums[i]);
            }
    }
}

// Scores and gradients of the weights of row `i` become the weights and the gradients of the scores.
inline void row_backward(float* x, float* y, int64_t mine, int64_t end, float scale, float log) {
    const int64_t wide = (mine + W - 1) / W * W;
    for (int64_t j = mine; j < wide; j++) x[j] = HIDDEN;
    V dots = {};
    for (int64_t j = 0; j < wide; j += W) { V p = exp_(load(x + j) * scale - log); store(x + j, p); dots += p * load(y + j); }
    const float mean = sum(dots);
    for (int64_t j = 0; j < wide; j += W) store(y + j, load(x + j) * (load(y + j) - mean));
    for (int64_t j = wide; j < end; j++) x[j] = y[j] = 0;
}

// Gradients of q, k and v of a unit from its output's.
inline void attend_unit_backward(const Forest& forest, const int64_t* unit, const Heads& of, int64_t kv_head, const uint16_t* q, const uint16_t* k, const uint16_t* v, const float* logs, const uint16_t* slope, uint16_t* dq, uint16_t* dk, uint16_t* dv) {
    thread_local Scratch own;
    const int64_t D = of.depth, group = of.heads / of.kv, stride = of.heads * D, first = unit[2], tokens = unit[3] - unit[2];
    const float scale = 1.0f / sqrtf(float(D));
    float *all_dkeys = own.room(own.all_dkeys, tokens * D), *all_dvalues = own.room(own.all_dvalues, tokens * D);
    memset(all_dkeys, 0, tokens * D * sizeof(float));
    memset(all_dvalues, 0, tokens * D * sizeof(float));
    uint32_t *queries = own.room(own.queries, QUERIES * D / 2), *query_pairs = own.room(own.query_pairs, QUERIES * D / 2);
    uint32_t *changes = own.room(own.changes, QUERIES * D / 2), *change_pairs = own.room(own.change_pairs, QUERIES * D / 2);
    float* outputs = own.room(own.outputs, QUERIES * D);
    for (int64_t s = unit[0]; s < unit[1]; s++) {
        const int64_t *segment = forest.segments + 5 * s, keys = segment[4], ld = (keys + PANEL - 1) / PANEL * PANEL + W;
        uint32_t *across = own.room(own.keys_across, ld * D / 2), *values_across = own.room(own.values_across, ld * D / 2);
        uint32_t* key_pairs = own.room(own.key_pairs, ld * D / 2);
        float *scores = own.room(own.scores, QUERIES * ld), *slopes = own.room(own.slopes, QUERIES * ld);
        uint32_t *weight_pairs = own.room(own.weight_pairs, QUERIES * ld / 2), *turn_pairs = own.room(own.turn_pairs, QUERIES * ld / 2);
        uint32_t* turns = own.room(own.turns, QUERIES * ld / 2);
        float *dkeys = own.room(own.dkeys, ld * D), *dvalues = own.room(own.dvalues, ld * D);
        memset(dkeys, 0, keys * D * sizeof(float));
        memset(dvalues, 0, keys * D * sizeof(float));
        gather(forest, segment, k, of, kv_head, across, key_pairs);
        gather(forest, segment, v, of, kv_head, values_across, nullptr);
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            for (int64_t a = segment[0]; a < segment[1]; a += QUERIES) {
                const Block b = block(segment, a);
                const int64_t end = b.vectors * W;
                take(q + a * stride + h * D, stride, queries, query_pairs, b.rows, D);
                take(slope + a * stride + h * D, stride, changes, change_pairs, b.rows, D);
                product_across(queries, across, scores, ld, b.rows, D / 2, b.vectors);
                product_across(changes, values_across, slopes, ld, b.rows, D / 2, b.vectors);
                for (int64_t i = 0; i < b.rows; i++) row_backward(scores + i * ld, slopes + i * ld, b.seen + i + 1, end, scale, logs[(a + i) * of.heads + h]);
                for (int64_t i = 0; i < b.rows; i += 2) {
                    const bool two = i + 1 < b.rows;
                    const float *x = scores + i * ld, *y = slopes + i * ld;
                    uint16_t* t = reinterpret_cast<uint16_t*>(turns + i * ld / 2);
                    for (int64_t j = 0; j < end; j += W) {
                        const V y1 = load(y + j), y2 = two ? load(y + ld + j) : V{};
                        store(weight_pairs + i / 2 * ld + j, paired(load(x + j), two ? load(x + ld + j) : V{}));
                        store(turn_pairs + i / 2 * ld + j, paired(y1, y2));
                        narrow_to(t + j, y1);
                        if (two) narrow_to(t + ld + j, y2);
                    }
                }
                product(turns, ld / 2, 1, key_pairs, D, outputs, D, b.rows, (b.most + 1) / 2, D / W, false);
                for (int64_t i = 0; i < b.rows; i++)
                    for (int64_t d = 0; d < D; d += W) narrow_to(dq + (a + i) * stride + h * D + d, load(outputs + i * D + d) * scale);
                product(weight_pairs, 1, ld, change_pairs, D, dvalues, D, b.most, (b.rows + 1) / 2, D / W, true);
                product(turn_pairs, 1, ld, query_pairs, D, dkeys, D, b.most, (b.rows + 1) / 2, D / W, true);
            }
        int64_t at = 0;
        for (int64_t r = segment[2]; r < segment[3]; r++)
            for (int64_t t = forest.ranges[2 * r]; t < forest.ranges[2 * r + 1]; t++, at++)
                for (int64_t d = 0; d < D; d += W) {
                    float *to_k = all_dkeys + (t - first) * D + d, *to_v = all_dvalues + (t - first) * D + d;
                    store(to_k, load(to_k) + load(dkeys + at * D + d));
                    store(to_v, load(to_v) + load(dvalues + at * D + d));
                }
    }
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t d = 0; d < D; d += W) {
            narrow_to(dk + ((first + t) * of.kv + kv_head) * D + d, load(all_dkeys + t * D + d) * scale);
            narrow_to(dv + ((first + t) * of.kv + kv_head) * D + d, load(all_dvalues + t * D + d));
        }
}

}  // namespace
