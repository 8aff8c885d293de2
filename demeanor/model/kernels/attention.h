// Attention of rows over the keys and values that their slots hold in pages: a row's sums run in one order, which its position and its
// slot's content decide, whatever the other rows, the tiles, the chunks and the threads are.
#pragma once
#include "products.h"

namespace {

constexpr int PAGE = 32;         // tokens of a page
constexpr int SPAN = 2 * PAGE;   // keys whose scores are compared at once; a span begins at a multiple of it
constexpr int FEW = MR / 2;     // queries that wait for memory more than for sums
constexpr int TILE = 2 * MR;     // queries that read a page one after the other, while it is in the nearest cache

// In each layer a page has for each kv head its keys as `depth` lines of PAGE numbers (a token is a column), and after those of all kv
// heads the values as PAGE lines of `depth`: the head's size, rounded up to 16. A layer's pages lie `stride` floats apart, an odd number of
// cache lines: one head's blocks of many pages would else share few sets of a cache.
struct Pages {
    float* data; const int32_t* table; int64_t blocks;      // pages of each slot, `blocks` a slot
    int64_t pages, stride, kv_heads, depth;
    int64_t half() const { return kv_heads * PAGE * depth; }
    float* keys(int64_t slot, int64_t position, int64_t layer, int64_t head) const {
        return data + (layer * pages + table[slot * blocks + position / PAGE]) * stride + head * PAGE * depth;
    }
    float* values(int64_t slot, int64_t position, int64_t layer, int64_t head) const { return keys(slot, position, layer, head) + half(); }
    void write(int64_t slot, int64_t position, int64_t layer, int64_t head, int64_t D, const float* key, const float* value) const {
        float *k = keys(slot, position, layer, head) + position % PAGE, *v = values(slot, position, layer, head) + position % PAGE * depth;
        for (int64_t d = 0; d < D; d++) k[d * PAGE] = key[d];
        std::memcpy(v, value, D * sizeof(float));
    }
};

inline int64_t deep(int64_t D) { return (D + 15) / 16 * 16; }

// Consecutive positions of one slot: rows `first` and on.
struct Tile { int64_t first, count; };

std::vector<Tile> tiles(int64_t N, const int64_t* slots, const int64_t* positions, int64_t group) {
    const int64_t most = TILE / group > 1 ? TILE / group : 1;
    std::vector<Tile> found;
    for (int64_t r = 0; r < N; r++) {
        const bool next = r && slots[r] == slots[r - 1] && positions[r] == positions[r - 1] + 1 && found.back().count < most;
        if (next) found.back().count++;
        else found.push_back({r, 1});
    }
    return found;
}

// out[m][c] = (or +=) the sum over i < n, in order, of a[m][i] b[i][c], for M rows and C registers of columns. `later`, if not null, is
// memory of n lines that is read next: it is asked for meanwhile.
template <int M, int C, bool ADD>
void sums(int64_t n, const float* a, int64_t lda, const float* b, int64_t ldb, float* out, int64_t ldo, const float* later) {
    V acc[M][C];
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) acc[m][c] = ADD ? load(out + m * ldo + c * W) : V{};
    for (int64_t i = 0; i < n; i++) {
        V v[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            v[c] = load(b + i * ldb + c * W);
            if (M <= FEW && later) __builtin_prefetch(later + i * ldb + c * W);
        }
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            const V x = all(a[m * lda + i]);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) acc[m][c] += x * v[c];
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) store(out + m * ldo + c * W, acc[m][c]);
}

template <int C, bool ADD>
void sums(int64_t M, int64_t n, const float* a, int64_t lda, const float* b, int64_t ldb, float* out, int64_t ldo, const float* later = nullptr) {
    const int64_t blocks = (M + MR - 1) / MR;
    for (int64_t i = 0, m = 0; i < blocks; i++) {
        const int64_t size = (M - m + blocks - i - 1) / (blocks - i);
        switch (size) {
#define CASE(s) case s: if constexpr (s * C <= 2 * MR) sums<s, C, ADD>(n, a + m * lda, lda, b, ldb, out + m * ldo, ldo, later); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
        }
        m += size;
    }
}

// Floats that `attend` writes to: queries and mixed values, scores, and of each query the sums of a register's lanes and the top score.
inline int64_t attend_floats(int64_t D, int64_t group) {
    const int64_t most = TILE > group ? TILE : group;
    return most * (2 * deep(D) + SPAN + W + 1) + 16;
}

inline float highest(V x) {
    float t[W];
    store(t, x);
    for (int s = W / 2; s; s /= 2)
        for (int i = 0; i < s; i++) t[i] = t[i + s] > t[i] ? t[i + s] : t[i];
    return t[0];
}

// Never inlined: else a compiler may round the product and a sum after it at once in one copy of the loop and not in another.
__attribute__((noinline)) void scaled(float* mixed, int64_t depth, float* lanes, V factor) {
    for (int64_t d = 0; d < depth; d += W) store(mixed + d, load(mixed + d) * factor);
    store(lanes, load(lanes) * factor);
}

// One kv head of a tile: G queries a row, `ldq` floats between rows, to `out` in the same way. Softmax as the keys come, span by span
// (Milakov & Gimelshein 2018, arXiv 1805.02867).
void attend(const Pages& y, int64_t layer, int64_t head, int64_t D, int64_t G, int64_t count, int64_t slot, int64_t at, const float* q, int64_t ldq,
            float* scratch, float* out, int64_t ldo) {
    const int64_t M = count * G, depth = y.depth, end = at + count;      // keys [0, end) are read
    float* own = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    float *queries = own, *mixed = queries + M * depth, *scores = mixed + M * depth, *lanes = scores + M * SPAN, *tops = lanes + M * W;
    const float scale = 1.0f / std::sqrt(float(D));
    for (int64_t m = 0; m < M; m++) {
        const float* from = q + m / G * ldq + m % G * D;
        for (int64_t d = 0; d < D; d++) queries[m * depth + d] = from[d] * scale;
        tops[m] = -INFINITY;
    }
    std::memset(mixed, 0, M * depth * sizeof(float));
    std::memset(lanes, 0, M * W * sizeof(float));
    I lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    for (int64_t start = 0; start < end; start += SPAN) {
        const int64_t pages = (end - start + PAGE - 1) / PAGE < SPAN / PAGE ? (end - start + PAGE - 1) / PAGE : SPAN / PAGE;
        for (int64_t p = 0; p < pages; p++) {
            const float *keys = y.keys(slot, start + p * PAGE, layer, head), *later = M > FEW ? nullptr : y.values(slot, start + p * PAGE, layer, head);
            for (int c = 0; c < PAGE; c += NR)
                sums<2, false>(M, D, queries, depth, keys + c, PAGE, scores + p * PAGE + c, SPAN, later ? later + c : nullptr);
        }
        for (int64_t m = 0; m < M; m++) {
            float* s = scores + m * SPAN;
            const int64_t seen = at + m / G + 1 - start;                  // of this span's keys, those that the query may see
            if (seen <= 0) { std::memset(s, 0, pages * PAGE * sizeof(float)); continue; }
            V most = all(-INFINITY);
            for (int64_t j = 0; j < pages * PAGE; j += W) {
                V x = load(s + j);
                if (seen < j + W) { const I hidden = lane >= int32_t(seen - j); x = hidden ? all(-INFINITY) : x; store(s + j, x); }
                most = x > most ? x : most;
            }
            const float top = highest(most);
            if (top > tops[m]) {
                scaled(mixed + m * depth, depth, lanes + m * W, exp_(all(tops[m] - top)));
                tops[m] = top;
            }
            V sum = load(lanes + m * W);
            for (int64_t j = 0; j < pages * PAGE; j += W) { const V e = exp_(load(s + j) - tops[m]); store(s + j, e); sum += e; }
            store(lanes + m * W, sum);
        }
        for (int64_t p = 0; p < pages; p++) {
            const float* values = y.values(slot, start + p * PAGE, layer, head);
            const int64_t n = end - start - p * PAGE < PAGE ? end - start - p * PAGE : PAGE;     // what is beyond may be anything, NaN too
            const int64_t next = start + SPAN + p * PAGE;
            const float* later = M > FEW || next >= end ? nullptr : y.keys(slot, next, layer, head);
            int64_t d = 0;
            if (M <= FEW)           // in the order of memory
                for (; d + 2 * NR <= depth; d += 2 * NR)
                    sums<4, true>(M, n, scores + p * PAGE, SPAN, values + d, depth, mixed + d, depth, later ? later + d : nullptr);
            for (; d + NR <= depth; d += NR)
                sums<2, true>(M, n, scores + p * PAGE, SPAN, values + d, depth, mixed + d, depth, later ? later + d : nullptr);
            for (; d < depth; d += W) sums<1, true>(M, n, scores + p * PAGE, SPAN, values + d, depth, mixed + d, depth);
        }
    }
    for (int64_t m = 0; m < M; m++) {
        const float inverse = 1.0f / sum(load(lanes + m * W));
        float* to = out + m / G * ldo + m % G * D;
        for (int64_t d = 0; d < D; d++) to[d] = mixed[m * depth + d] * inverse;
    }
}

}  // namespace
