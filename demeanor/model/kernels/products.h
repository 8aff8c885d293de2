// Products of rows with a matrix in panels of NR outputs: every row's sums run in one order whatever the other rows are.
#pragma once
#include "quantised.h"

namespace {

// A low-rank product beside a matrix (LoRA): output o stands in column base + o / NR * step + o % NR; a is rank x ins, b outs x rank.
struct Low { int64_t base, outs, step, rank; const float *a, *b, *scale; };
struct Matrix { int64_t outs, ins, kind; const void* data; const float* scale; const float* bias; std::vector<Low> low; };

template <typename T, int M, int P>
void micro(const T* w, int64_t K, const float* x, int64_t ldx, float* out, int64_t ldo, const float* scale, const float* bias, bool add) {
    V acc[M][2 * P] = {};
    const int64_t stride = K * NR;
    for (int64_t k = 0; k < K; k++) {
        V v[2 * P];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) { v[2 * p] = load(w + p * stride + k * NR); v[2 * p + 1] = load(w + p * stride + k * NR + W); }
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            const V b = all(x[m * ldx + k]);
#pragma GCC unroll 8
            for (int c = 0; c < 2 * P; c++) acc[m][c] += b * v[c];
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int c = 0; c < 2 * P; c++) {
            V value = acc[m][c];
            if (scale) value *= load(scale + c * W);
            if (bias) value += load(bias + c * W);
            float* at = out + m * ldo + c * W;
            store(at, add ? load(at) + value : value);
        }
}

template <typename T, int P>
void rows(int M, const T* w, int64_t K, const float* x, int64_t ldx, float* out, int64_t ldo, const float* s, const float* b, bool add) {
    switch (M) {
#define CASE(m) case m: if constexpr (m <= MR && m * P <= MR) micro<T, m, P>(w, K, x, ldx, out, ldo, s, b, add); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
    }
}

// Panels [first, last) of out = x W^T (+ bias), or out += it. `out` has ldo floats a row, a multiple of NR.
template <typename T>
void product(const Matrix& m, int64_t first, int64_t last, int64_t N, const float* x, int64_t ldx, float* out, int64_t ldo, bool add) {
    const T* data = static_cast<const T*>(m.data);
    for (int64_t p = first; p < last;) {
        const int64_t at = p * NR;
        const T* w = data + at * m.ins;
        const float *s = m.scale ? m.scale + at : nullptr, *b = m.bias ? m.bias + at : nullptr;
        const int64_t left = last - p;
        int wide = N == 1 && left >= 4 ? 4 : N <= 3 && left >= 2 ? 2 : 1;
        if (wide == 4) rows<T, 4>(1, w, m.ins, x, ldx, out + at, ldo, s, b, add);
        else if (wide == 2) rows<T, 2>(int(N), w, m.ins, x, ldx, out + at, ldo, s, b, add);
        else {
            const int64_t blocks = (N + MR - 1) / MR;
            for (int64_t i = 0, r = 0; i < blocks; i++) {
                const int64_t size = (N - r + blocks - i - 1) / (blocks - i);
                rows<T, 1>(int(size), w, m.ins, x + r * ldx, ldx, out + r * ldo + at, ldo, s, b, add);
                r += size;
            }
        }
        p += wide;
    }
}

// Never inlined: a compiler may round one copy of a loop as products and sums, and another as fused ones.
__attribute__((noinline)) float rest(const float* a, const float* b, int64_t n, float s) {
    for (int64_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}
__attribute__((noinline)) float fused(float a, float b, float s) { return s + a * b; }

float dot(const float* a, const float* b, int64_t n) {
    V acc = {};
    int64_t i = 0;
    for (; i + W <= n; i += W) acc += load(a + i) * load(b + i);
    const float s = sum(acc);
    return i < n ? rest(a + i, b + i, n - i, s) : s;
}

void low(const Matrix& m, int64_t first, int64_t last, int64_t N, const float* x, int64_t ldx, float* out, int64_t ldo) {
    float small[MOST_RANK];
    for (const Low& y : m.low)
        for (int64_t r = 0; r < N; r++) {
            for (int64_t j = 0; j < y.rank; j++) small[j] = *y.scale * dot(y.a + j * m.ins, x + r * ldx, m.ins);
            for (int64_t o = 0; o < y.outs; o++) {
                const int64_t column = y.base + o / NR * y.step + o % NR;
                if (column >= first * NR && column < last * NR) out[r * ldo + column] += dot(y.b + o * y.rank, small, y.rank);
            }
        }
}

void product(const Matrix& m, int64_t first, int64_t last, int64_t N, const float* x, int64_t ldx, float* out, int64_t ldo, bool add) {
    if (grouped(m.kind)) {
        static thread_local std::vector<float> memory;
        if (int64_t(memory.size()) < rounded_floats(N, m.ins)) memory.resize(rounded_floats(N, m.ins));
        const Rounded rows = rounded_at(memory.data(), N, m.ins);
        round_rows(m.kind, x, ldx, m.ins, rows, 0, N);
        quantised_product(m.kind, m.data, m.ins, m.bias, first, last, N, rows, out, ldo, add);
    }
    else if (m.kind == 0) product<float>(m, first, last, N, x, ldx, out, ldo, add);
    else if (m.kind == 1) product<uint16_t>(m, first, last, N, x, ldx, out, ldo, add);
    else product<int8_t>(m, first, last, N, x, ldx, out, ldo, add);
    low(m, first, last, N, x, ldx, out, ldo);
}

inline int64_t panels(const Matrix& m) { return (m.outs + NR - 1) / NR; }
inline int64_t padded(int64_t n) { return (n + NR - 1) / NR * NR; }

}  // namespace
