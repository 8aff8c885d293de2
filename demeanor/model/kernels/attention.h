// Attention of rows over the keys and values that their slots hold in pages: a row's sums run in one order, which its position and its
// slot's content decide, whatever the other rows, the tiles, the chunks and the threads are.
#pragma once
#include "products.h"

namespace {

constexpr int PAGE = 32;         // tokens of a page
constexpr int SPAN = 2 * PAGE;   // keys whose scores are compared at once; a span begins at a multiple of it
constexpr int STRETCH = 8 * SPAN;  // keys that are mixed apart from others, so that threads can share one long sequence; begins at a multiple
constexpr int FEW = MR / 2;     // queries that wait for memory more than for sums
constexpr int TILE = 2 * MR;     // queries that read a page one after the other, while it is in the nearest cache

// ---- the cache ----

struct Half { uint16_t bits; };            // fp16; a uint16_t is bf16
inline V load(const Half* p) { return halves(&p->bits); }
inline void put(float* p, float x) { *p = x; }
inline void put(uint16_t* p, float x) {    // nearest, ties to even; a NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *p = uint16_t((x == x ? bits + 0x7fffu + (bits >> 16 & 1u) : bits | 0x400000u) >> 16);
}
inline void put(Half* p, float x) {        // nearest, ties to even, up to the greatest fp16; a NaN stays one
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
#if defined(__F16C__)
    p->bits = uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint16_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (x != x) { p->bits = sign | 0x7e00u; return; }
    if (bits < 0x38800000u) {              // below the least normal one: multiples of 2^-24
        const float whole = (std::fabs(x) * 0x1p24f + 12582912.0f) - 12582912.0f;
        p->bits = uint16_t(sign | uint16_t(whole));
        return;
    }
    p->bits = uint16_t(sign | ((bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u) >> 13));
#endif
}

enum Cells : int64_t { CELLS_FP32 = 0, CELLS_BF16 = 1, CELLS_FP16 = 2 };

// In each layer a page has for each kv head its keys as `depth` lines of PAGE numbers (a token is a column), and after those of all kv
// heads the values as PAGE lines of `depth`: the head's size, rounded up to 16. A layer's pages lie `stride` numbers apart, an odd number of
// cache lines: one head's blocks of many pages would else share few sets of a cache. Numbers are float, uint16_t (bf16) or Half, as `cells` says.
struct Pages {
    void* data; const int32_t* table; int64_t blocks;      // pages of each slot, `blocks` a slot
    int64_t pages, stride, cells, kv_heads, depth;
    template <typename T> T* keys(int64_t slot, int64_t position, int64_t layer, int64_t head) const {
        return static_cast<T*>(data) + (layer * pages + table[slot * blocks + position / PAGE]) * stride + head * PAGE * depth;
    }
    template <typename T> T* values(int64_t slot, int64_t position, int64_t layer, int64_t head) const {
        return keys<T>(slot, position, layer, head) + kv_heads * PAGE * depth;
    }
    template <typename T> void put_all(int64_t slot, int64_t position, int64_t layer, int64_t head, int64_t D, const float* key, const float* value) const {
        T *k = keys<T>(slot, position, layer, head) + position % PAGE, *v = values<T>(slot, position, layer, head) + position % PAGE * depth;
        for (int64_t d = 0; d < D; d++) put(k + d * PAGE, key[d]);
        for (int64_t d = 0; d < D; d++) put(v + d, value[d]);
    }
    void write(int64_t slot, int64_t position, int64_t layer, int64_t head, int64_t D, const float* key, const float* value) const {
        if (cells == CELLS_BF16) put_all<uint16_t>(slot, position, layer, head, D, key, value);
        else if (cells == CELLS_FP16) put_all<Half>(slot, position, layer, head, D, key, value);
        else put_all<float>(slot, position, layer, head, D, key, value);
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

// ---- sums ----

// What queries and shares are multiplied in: fp32, or for a cache of bf16 bf16 with fp32 sums, two numbers a step (see Bf16Products).
template <typename T> struct Rows { typedef float Number; };
template <> struct Rows<uint16_t> { typedef NarrowRow Number; };
template <typename T> constexpr bool PAIRED = std::is_same_v<T, uint16_t>;
// A score may be so far above the one that a query's exponentials are relative to, before all that was mixed is scaled down to the new
// greatest: relative errors stay the same, and most rescaling is saved.
template <typename T> constexpr float SLACK = PAIRED<T> ? 4.0f : 0.0f;
const uint16_t NOTHING[4 * W] = {};        // in place of a line beyond the last

// acc[m][c] += two rows' numbers (the second's first) times two lines of bf16.
template <int M, int C>
inline void add_pair(V (&acc)[M][C], const NarrowRow* a, int64_t lda, const uint16_t* one, const uint16_t* two) {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr uint16_t SIDE_BY_SIDE[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    __m512bh v[C];
    if constexpr (C == 1) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(one)));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(two)));
        v[0] = (__m512bh)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    } else
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            v[c] = (__m512bh)_mm512_permutex2var_epi16(_mm512_loadu_si512(one + c / 2 * 2 * W), _mm512_load_si512(SIDE_BY_SIDE[c % 2]), _mm512_loadu_si512(two + c / 2 * 2 * W));
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
        const __m512bh x = (__m512bh)_mm512_set1_epi32(a[m * lda]);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) acc[m][c] = _mm512_dpbf16_ps(acc[m][c], x, v[c]);
    }
#else
    V first[C], second[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) { first[c] = load(one + c * W); second[c] = load(two + c * W); }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++) {
        const V x = all(a[m * lda]), y = all(a[m * lda + 1]);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) { acc[m][c] += y * second[c]; acc[m][c] += x * first[c]; }
    }
#endif
}

// out[m][c] = (or +=) the sum over i < n, in order, of a[m][i] b[i][c], for M rows and C registers of columns. `later`, if not null, is
// memory of n lines that is read next: it is asked for meanwhile.
template <int M, int C, bool ADD, typename T>
void sums(int64_t n, const typename Rows<T>::Number* a, int64_t lda, const T* b, int64_t ldb, float* out, int64_t ldo, const T* later) {
    V acc[M][C];
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) acc[m][c] = ADD ? load(out + m * ldo + c * W) : V{};
    if constexpr (PAIRED<T>)
        for (int64_t i = 0; i < n; i += 2) {
            if (M <= FEW && later)
                for (int64_t line = i; line < i + 2; line++)
#pragma GCC unroll 2
                    for (int c = 0; c < C; c += 2) __builtin_prefetch(later + line * ldb + c * W);
            add_pair<M, C>(acc, a + i / NARROW, lda, b + i * ldb, i + 1 < n ? b + (i + 1) * ldb : NOTHING);
        }
    else
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

template <int C, bool ADD, typename T>
void sums(int64_t M, int64_t n, const typename Rows<T>::Number* a, int64_t lda, const T* b, int64_t ldb, float* out, int64_t ldo, const T* later = nullptr) {
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

// ---- softmax and mixture ----

// Of M queries over some keys: values mixed by exp(score - top) (`depth` floats a query), the sums of these by register lane, and the score that these
// are relative to: the top one, or one at most SLACK below it.
struct Mixed { float *mixed, *lanes, *tops; };
inline int64_t mixed_floats(int64_t M, int64_t depth) { return (M * (depth + W + 1) + 15) / 16 * 16; }
inline Mixed mixed_at(float* memory, int64_t M, int64_t depth) { return {memory, memory + M * depth, memory + M * (depth + W)}; }

inline int64_t most_queries(int64_t group) { return TILE > group ? TILE : group; }

// Floats that a thread writes to in `attend`: queries and scores, both again as they are multiplied, and what is mixed of a stretch and of
// all before it.
inline int64_t attend_floats(int64_t D, int64_t group) {
    const int64_t most = most_queries(group);
    return 2 * most * (deep(D) + SPAN) + 2 * mixed_floats(most, deep(D)) + 16;
}

inline float highest(V x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(x);
#else
    float t[W];
    store(t, x);
    for (int s = W / 2; s; s /= 2)
        for (int i = 0; i < s; i++) t[i] = t[i + s] > t[i] ? t[i + s] : t[i];
    return t[0];
#endif
}

// Never inlined: else a compiler may round the product and a sum after it at once in one copy of the loop and not in another.
__attribute__((noinline)) void scaled(float* mixed, int64_t depth, float* lanes, V factor) {
    for (int64_t d = 0; d < depth; d += W) store(mixed + d, load(mixed + d) * factor);
    store(lanes, load(lanes) * factor);
}

// to = to + from, for queries of which `from` has seen keys: `first` and on.
__attribute__((noinline)) void add_stretch(const Mixed& to, const Mixed& from, int64_t first, int64_t M, int64_t depth) {
    for (int64_t m = first; m < M; m++) {
        const float top = from.tops[m] > to.tops[m] ? from.tops[m] : to.tops[m];
        const V old = exp_(all(to.tops[m] - top)), more = exp_(all(from.tops[m] - top));
        for (int64_t d = 0; d < depth; d += W) store(to.mixed + m * depth + d, load(to.mixed + m * depth + d) * old + load(from.mixed + m * depth + d) * more);
        store(to.lanes + m * W, load(to.lanes + m * W) * old + load(from.lanes + m * W) * more);
        to.tops[m] = top;
    }
}

// One kv head of a tile: G queries a row, `ldq` floats between rows; `count` rows of a slot from position `at` on.
struct Queries { int64_t layer, head, D, G, count, slot, at; const float* q; int64_t ldq; };

// Keys [first, last) of a tile, span by span: softmax as the keys come (Milakov & Gimelshein 2018, arXiv 1805.02867).
template <typename T>
void attend_stretch(const Pages& y, const Queries& x, int64_t first, int64_t last, float* scratch, const Mixed& out) {
    const int64_t G = x.G, M = x.count * G, D = x.D, depth = y.depth;
    typedef typename Rows<T>::Number Number;
    float *scaled_queries = scratch, *scores = scaled_queries + M * depth, *mixed = out.mixed, *lanes = out.lanes, *tops = out.tops;
    Number *queries = reinterpret_cast<Number*>(PAIRED<T> ? scores + M * SPAN : scaled_queries);
    Number *shares = reinterpret_cast<Number*>(PAIRED<T> ? scores + M * (SPAN + depth) : scores);
    const float scale = 1.0f / std::sqrt(float(D));
    for (int64_t m = 0; m < M; m++) {
        const float* from = x.q + m / G * x.ldq + m % G * D;
        for (int64_t d = 0; d < D; d++) scaled_queries[m * depth + d] = from[d] * scale;
        if constexpr (PAIRED<T>) round_narrow(scaled_queries + m * depth, D, queries + m * depth);
        tops[m] = -INFINITY;
    }
    std::memset(mixed, 0, M * depth * sizeof(float));
    std::memset(lanes, 0, M * W * sizeof(float));
    I lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    for (int64_t start = first; start < last; start += SPAN) {
        const int64_t pages = (last - start + PAGE - 1) / PAGE < SPAN / PAGE ? (last - start + PAGE - 1) / PAGE : SPAN / PAGE;
        for (int64_t p = 0; p < pages; p++) {
            const T *keys = y.keys<T>(x.slot, start + p * PAGE, x.layer, x.head);
            const T *later = M > FEW ? nullptr : y.values<T>(x.slot, start + p * PAGE, x.layer, x.head);
            for (int c = 0; c < PAGE; c += NR)
                sums<2, false>(M, D, queries, depth, keys + c, PAGE, scores + p * PAGE + c, SPAN, later ? later + c : nullptr);
        }
        for (int64_t m = 0; m < M; m++) {
            float* s = scores + m * SPAN;
            const int64_t seen = x.at + m / G + 1 - start;                // of this span's keys, those that the query may see
            if (seen <= 0) { std::memset(shares + m * SPAN, 0, pages * PAGE * sizeof(float)); continue; }
            V most = all(-INFINITY);
            for (int64_t j = 0; j < pages * PAGE; j += W) {
                V v = load(s + j);
                if (seen < j + W) { const I hidden = lane >= int32_t(seen - j); v = hidden ? all(-INFINITY) : v; store(s + j, v); }
                most = v > most ? v : most;
            }
            const float top = highest(most);
            if (top > tops[m] + SLACK<T>) {
                scaled(mixed + m * depth, depth, lanes + m * W, exp_(all(tops[m] - top)));
                tops[m] = top;
            }
            V sum = load(lanes + m * W);
            if constexpr (PAIRED<T>)
                for (int64_t j = 0; j < pages * PAGE; j += NR) {
                    const V e = coarse_exp(load(s + j) - tops[m]), f = coarse_exp(load(s + j + W) - tops[m]);
                    narrow(e, f, shares + m * SPAN + j / NARROW);
                    sum += e;
                    sum += f;
                }
            else
                for (int64_t j = 0; j < pages * PAGE; j += W) { const V e = exp_<true>(load(s + j) - tops[m]); store(s + j, e); sum += e; }
            store(lanes + m * W, sum);
        }
        for (int64_t p = 0; p < pages; p++) {
            const T* values = y.values<T>(x.slot, start + p * PAGE, x.layer, x.head);
            const int64_t n = last - start - p * PAGE < PAGE ? last - start - p * PAGE : PAGE;   // what is beyond may be anything, NaN too
            const int64_t next = start + SPAN + p * PAGE;
            const T* later = M > FEW || next >= last ? nullptr : y.keys<T>(x.slot, next, x.layer, x.head);
            const Number* share = shares + p * PAGE / int64_t(PAIRED<T> ? NARROW : 1);
            int64_t d = 0;
            if (M <= FEW)           // in the order of memory
                for (; d + 2 * NR <= depth; d += 2 * NR)
                    sums<4, true>(M, n, share, SPAN, values + d, depth, mixed + d, depth, later ? later + d : nullptr);
            for (; d + NR <= depth; d += NR)
                sums<2, true>(M, n, share, SPAN, values + d, depth, mixed + d, depth, later ? later + d : nullptr);
            for (; d < depth; d += W) sums<1, true>(M, n, share, SPAN, values + d, depth, mixed + d, depth);
        }
    }
}

// Never inlined, as `scaled`.
__attribute__((noinline)) void attend_stretch(const Pages& y, const Queries& x, int64_t first, float* scratch, const Mixed& out) {
    const int64_t end = x.at + x.count, last = first + STRETCH < end ? first + STRETCH : end;
    if (y.cells == CELLS_BF16) attend_stretch<uint16_t>(y, x, first, last, scratch, out);
    else if (y.cells == CELLS_FP16) attend_stretch<Half>(y, x, first, last, scratch, out);
    else attend_stretch<float>(y, x, first, last, scratch, out);
}

inline int64_t stretches(int64_t keys) { return (keys + STRETCH - 1) / STRETCH; }

// The first of a tile's queries that sees keys from `first` on.
inline int64_t first_query(const Queries& x, int64_t first) { return (first > x.at ? first - x.at : 0) * x.G; }

void finish(const Queries& x, const Mixed& all_keys, int64_t depth, float* out, int64_t ldo) {
    for (int64_t m = 0; m < x.count * x.G; m++) {
        const float inverse = 1.0f / sum(load(all_keys.lanes + m * W));
        float* to = out + m / x.G * ldo + m % x.G * x.D;
        for (int64_t d = 0; d < x.D; d++) to[d] = all_keys.mixed[m * depth + d] * inverse;
    }
}

inline float* aligned(float* p) { return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64); }

// One tile's kv head by one thread: stretches one after the other, each added to those before it.
void attend(const Pages& y, const Queries& x, float* scratch, float* out, int64_t ldo) {
    const int64_t M = x.count * x.G, end = x.at + x.count;
    float *own = aligned(scratch), *memory = own + 2 * M * (y.depth + SPAN);
    const Mixed whole = mixed_at(memory, M, y.depth), part = mixed_at(memory + mixed_floats(M, y.depth), M, y.depth);
    attend_stretch(y, x, 0, own, whole);
    for (int64_t first = STRETCH; first < end; first += STRETCH) {
        attend_stretch(y, x, first, own, part);
        add_stretch(whole, part, first_query(x, first), M, y.depth);
    }
    finish(x, whole, y.depth, out, ldo);
}

}  // namespace
