// Products of rows with a matrix of small integers in groups of 32 inputs (8 or 4 bits, an fp16 scale, perhaps an fp16 minimum). Rows are
// rounded to int8 in the same groups, so products are sums of integers, exact on every CPU; they are scaled and added group after group,
// in that order, whatever the other rows are.
#pragma once
#include "threads.h"

namespace {

constexpr int64_t GROUP = 32;              // inputs that share a scale
constexpr int64_t STEPS = GROUP / 4;       // four inputs of an output lie side by side in a lane of 32 bits

// ---- vectors of W lanes of four bytes ----

#if defined(__FMA__) || defined(__AVX512F__)
constexpr bool FUSED = true;
#else
constexpr bool FUSED = false;
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
typedef __m512i Q;
inline V fma_(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline Q bytes(const void* p) { return _mm512_loadu_si512(p); }
inline Q every(int32_t x) { return _mm512_set1_epi32(x); }
inline Q low_half(Q x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Q high_half(Q x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
inline V floats(Q x) { return _mm512_cvtepi32_ps(x); }
inline V halves(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
#if defined(__AVX512VNNI__)
constexpr bool UNSIGNED_BYTES = true;      // weights of 8 bits enter a product as 0 to 255
template <int BITS> inline Q dot4(Q sum, Q w, Q x) { return _mm512_dpbusd_epi32(sum, w, x); }
#else
constexpr bool UNSIGNED_BYTES = false;
template <int BITS> inline Q dot4(Q sum, Q w, Q x) {
    if constexpr (BITS == 8) {  // a pair of products of |w| <= 128 and |x| <= 127 fits 16 bits, one of w + 128 does not
        const Q minus = _mm512_set1_epi8(-128);
        w = _mm512_xor_si512(w, minus);
        const __mmask64 negative = _mm512_movepi8_mask(w);
        x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
        w = _mm512_abs_epi8(w);
    }
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
}
#endif
#elif defined(__AVX2__)
typedef __m256i Q;
#if defined(__FMA__)
inline V fma_(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
#else
inline V fma_(V a, V b, V c) { return c + a * b; }
#endif
inline Q bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Q every(int32_t x) { return _mm256_set1_epi32(x); }
inline Q low_half(Q x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Q high_half(Q x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
inline V floats(Q x) { return _mm256_cvtepi32_ps(x); }
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
constexpr bool UNSIGNED_BYTES = true;
template <int BITS> inline Q dot4(Q sum, Q w, Q x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else
    return _mm256_dpbusd_epi32(sum, w, x);
#endif
}
#else
constexpr bool UNSIGNED_BYTES = false;
template <int BITS> inline Q dot4(Q sum, Q w, Q x) {
    if constexpr (BITS == 8) {
        w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        x = _mm256_sign_epi8(x, w);
        w = _mm256_abs_epi8(w);
    }
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
#endif
#else
typedef I Q;
typedef uint8_t QB __attribute__((vector_size(W * 4)));
constexpr bool UNSIGNED_BYTES = true;
inline V fma_(V a, V b, V c) { return c + a * b; }
inline Q bytes(const void* p) { Q x; std::memcpy(&x, p, sizeof x); return x; }
inline Q every(int32_t x) { Q v = {}; return v + x; }
inline Q low_half(Q x) { return reinterpret_cast<Q>(reinterpret_cast<QB>(x) & 15); }
inline Q high_half(Q x) { return reinterpret_cast<Q>(reinterpret_cast<QB>(x) >> 4); }
inline V floats(Q x) { return __builtin_convertvector(x, V); }
template <int BITS> inline Q dot4(Q sum, Q w, Q x) {
    const U u = reinterpret_cast<U>(w);
    sum += reinterpret_cast<I>(u & 255u) * ((x << 24) >> 24);
    sum += reinterpret_cast<I>((u >> 8) & 255u) * ((x << 16) >> 24);
    sum += reinterpret_cast<I>((u >> 16) & 255u) * ((x << 8) >> 24);
    return sum + reinterpret_cast<I>(u >> 24) * (x >> 24);
}
#endif
#if !(defined(__AVX512F__) && defined(__AVX512BW__))
#if defined(__F16C__)
inline V halves(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
#else
inline float half(uint16_t h) {            // exact: every fp16 is an fp32
    const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude >= 0x0400) { const uint32_t bits = sign | ((magnitude << 13) + (112u << 23)); float f; std::memcpy(&f, &bits, 4); return f; }
    const float small = float(magnitude) * 0x1p-24f;  // subnormal
    return sign ? -small : small;
}
inline V halves(const uint16_t* p) { V v; for (int i = 0; i < W; i++) v[i] = half(p[i]); return v; }
#endif
#endif

#if defined(__AVX512F__)
inline int32_t greatest(I x) { return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(x)); }
inline int32_t sum_of(I x) { return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(x)); }
#else
inline int32_t greatest(I x) { int32_t most = x[0]; for (int i = 1; i < W; i++) most = x[i] > most ? x[i] : most; return most; }
inline int32_t sum_of(I x) { int32_t sum = 0; for (int i = 0; i < W; i++) sum += x[i]; return sum; }
#endif

// ---- rows ----

inline int64_t groups(int64_t ins) { return (ins + GROUP - 1) / GROUP; }

// Rows rounded to int8: for each group 32 integers, their scale, and an addend: the sum of the integers times minus what was added to the
// weights (as int32), or with minima the sum times the scale (as fp32).
struct Rounded { int8_t* values; float* scales; int32_t* sums; };

// Space for N rows, in floats.
inline int64_t rounded_floats(int64_t N, int64_t ins) { return N * groups(ins) * (GROUP / 4 + 2) + 16; }
inline Rounded rounded_at(float* memory, int64_t N, int64_t ins) {
    const int64_t G = groups(ins);
    float* at = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    float* scales = at + N * G * (GROUP / 4);
    return {reinterpret_cast<int8_t*>(at), scales, reinterpret_cast<int32_t*>(scales + N * G)};
}

// Round row r, a function of the row only: scale = greatest magnitude / 127, integers nearest to x / scale (ties to even).
template <bool MINIMA>
void round_row(const float* x, int64_t ins, int32_t offset, const Rounded& out, int64_t r) {
    const int64_t G = groups(ins);
    constexpr int PARTS = GROUP / W;
    for (int64_t g = 0; g < G; g++) {
        V part[PARTS];
        const int64_t left = ins - g * GROUP;
        if (left >= GROUP) for (int c = 0; c < PARTS; c++) part[c] = load(x + g * GROUP + c * W);
        else {
            float whole[GROUP] = {};
            std::memcpy(whole, x + g * GROUP, left * sizeof(float));
            for (int c = 0; c < PARTS; c++) part[c] = load(whole + c * W);
        }
        I most = {};                       // magnitudes as integers, so that a NaN is the greatest
        for (int c = 0; c < PARTS; c++) { const I m = reinterpret_cast<I>(part[c]) & 0x7fffffff; most = m > most ? m : most; }
        const int32_t top = greatest(most);
        float peak;
        std::memcpy(&peak, &top, 4);
        const float factor = peak > 0.0f ? 127.0f / peak : 0.0f;
        int8_t* q = out.values + (r * G + g) * GROUP;
        I total = {};
        for (int c = 0; c < PARTS; c++) {
            const V magic = all(12582912.0f);  // 1.5 x 2^23: adding it rounds to whole numbers, ties to even
            const V scaled = part[c] * factor;
            const I n = reinterpret_cast<I>(scaled + magic) - reinterpret_cast<I>(magic);
            total += n;
#if defined(__AVX512F__)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(q + c * W), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(n)));
#else
            for (int i = 0; i < W; i++) q[c * W + i] = int8_t(n[i]);
#endif
        }
        const int32_t sum = sum_of(total);
        const float scale = peak / 127.0f;
        out.scales[r * G + g] = scale;
        if constexpr (MINIMA) { const float product = scale * float(sum); std::memcpy(out.sums + r * G + g, &product, 4); }
        else out.sums[r * G + g] = -offset * sum;
    }
}

// ---- products ----

// A panel of NR outputs is, group after group: NR scales, NR minima if there are any, then STEPS steps of NR lanes of four unsigned bytes;
// with 4 bits a byte holds step s in its low half and step s + STEPS / 2 in its high one.
constexpr int64_t group_bytes(int bits, bool minima) { return NR * 2 * (1 + minima) + NR * GROUP * bits / 8; }

// Lines of cache of the panel that is read next: `lines` of them are asked for in each group. A CPU by itself does not fetch from memory
// far ahead while it multiplies.
struct Ahead { const uint8_t* at; int64_t lines; };

template <int M, int BITS, bool MINIMA>
void quantised_micro(const uint8_t* w, int64_t G, const Rounded& x, int64_t r, float* out, int64_t ldo, const float* bias, bool add, Ahead ahead) {
    V acc[M][2] = {};
    constexpr int64_t size = group_bytes(BITS, MINIMA);
    const int8_t* values = x.values + r * G * GROUP;
    const float* scales = x.scales + r * G;
    const int32_t* sums = x.sums + r * G;
    for (int64_t g = 0; g < G; g++, w += size) {
        const uint16_t* beside = reinterpret_cast<const uint16_t*>(w);
        const uint8_t* data = w + NR * 2 * (1 + MINIMA);
        for (int64_t i = 0; i < ahead.lines; i++, ahead.at += 64) __builtin_prefetch(ahead.at);
        Q sum[M][2];
        constexpr bool shifted = !MINIMA && (BITS == 4 || UNSIGNED_BYTES);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = every(shifted ? sums[m * G + g] : 0);
#pragma GCC unroll 8
        for (int s = 0; s < (BITS == 8 ? STEPS : STEPS / 2); s++) {
            const Q a = bytes(data + s * NR * 4), b = bytes(data + s * NR * 4 + W * 4);
            const int8_t* at = values + g * GROUP + s * 4;
            auto step = [&](Q p, Q q, int64_t from) __attribute__((always_inline)) {
#pragma GCC unroll 12
                for (int m = 0; m < M; m++) {
                    int32_t four;
                    std::memcpy(&four, at + m * G * GROUP + from, 4);
                    const Q v = every(four);
                    sum[m][0] = dot4<BITS>(sum[m][0], p, v);
                    sum[m][1] = dot4<BITS>(sum[m][1], q, v);
                }
            };
            if constexpr (BITS == 8) step(a, b, 0);
            else { step(low_half(a), low_half(b), 0); step(high_half(a), high_half(b), GROUP / 2); }
        }
        const V s0 = halves(beside), s1 = halves(beside + W);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            const float d = scales[m * G + g];
            acc[m][0] = fma_(floats(sum[m][0]), s0 * d, acc[m][0]);
            acc[m][1] = fma_(floats(sum[m][1]), s1 * d, acc[m][1]);
        }
        if constexpr (MINIMA) {
            const V m0 = halves(beside + NR), m1 = halves(beside + NR + W);
#pragma GCC unroll 12
            for (int m = 0; m < M; m++) {
                float total;
                std::memcpy(&total, sums + m * G + g, 4);
                acc[m][0] = fma_(m0, all(total), acc[m][0]);
                acc[m][1] = fma_(m1, all(total), acc[m][1]);
            }
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; m++)
        for (int c = 0; c < 2; c++) {
            V value = acc[m][c];
            if (bias) value += load(bias + c * W);
            float* at = out + m * ldo + c * W;
            store(at, add ? load(at) + value : value);
        }
}

constexpr int QR = W == 16 ? 6 : 2;        // rows whose sums stay in registers

template <int BITS, bool MINIMA>
void quantised_product(const uint8_t* data, int64_t G, const float* bias, int64_t first, int64_t last, int64_t N, const Rounded& x, float* out, int64_t ldo, bool add) {
    for (int64_t p = first; p < last; p++) {
        const uint8_t* w = data + p * G * group_bytes(BITS, MINIMA);
        const float* b = bias ? bias + p * NR : nullptr;
        const int64_t blocks = (N + QR - 1) / QR, bytes = G * group_bytes(BITS, MINIMA);
        const int64_t lines = (bytes + 64 * blocks * G - 1) / (64 * blocks * G);
        for (int64_t i = 0, r = 0; i < blocks; i++) {
            const int64_t size = (N - r + blocks - i - 1) / (blocks - i), done = i * G * lines * 64;
            const Ahead ahead{w + bytes + done, done < bytes ? lines : 0};
            float* at = out + r * ldo + p * NR;
            switch (size) {
#define CASE(m) case m: if constexpr (m <= QR) quantised_micro<m, BITS, MINIMA>(w, G, x, r, at, ldo, b, add, ahead); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
            }
            r += size;
        }
    }
}

// Panels [first, last) of out = x W^T (+ bias), or out += it, of rows that are rounded here. kind: 3 Q8_0, 4 Q4_0, 5 Q4_1.
inline bool grouped(int64_t kind) { return kind >= 3 && kind <= 5; }
inline void round_rows(int64_t kind, const float* x, int64_t ldx, int64_t ins, const Rounded& out, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
        if (kind == 3) round_row<false>(x + r * ldx, ins, UNSIGNED_BYTES ? 128 : 0, out, r);
        else if (kind == 4) round_row<false>(x + r * ldx, ins, 8, out, r);
        else round_row<true>(x + r * ldx, ins, 0, out, r);
    }
}
inline void quantised_product(int64_t kind, const void* data, int64_t ins, const float* bias, int64_t first, int64_t last, int64_t N, const Rounded& x,
                              float* out, int64_t ldo, bool add) {
    const auto* w = static_cast<const uint8_t*>(data);
    const int64_t G = groups(ins);
    if (kind == 3) quantised_product<8, false>(w, G, bias, first, last, N, x, out, ldo, add);
    else if (kind == 4) quantised_product<4, false>(w, G, bias, first, last, N, x, out, ldo, add);
    else quantised_product<4, true>(w, G, bias, first, last, N, x, out, ldo, add);
}

// Row `index` of the matrix in fp32 (an embedding that is also the head).
inline void quantised_row(int64_t kind, const void* data, int64_t ins, int64_t index, float* out) {
    const int bits = kind == 3 ? 8 : 4;
    const bool minima = kind == 5;
    const int64_t G = groups(ins), size = group_bytes(bits, minima), lane = index % NR;
    const uint8_t* w = static_cast<const uint8_t*>(data) + index / NR * G * size;
    for (int64_t g = 0; g < G; g++, w += size) {
        const uint16_t* beside = reinterpret_cast<const uint16_t*>(w);
        const uint8_t* bytes = w + NR * 2 * (1 + minima) + lane * 4;
        const float scale = halves(beside + lane / W * W)[lane % W], low = minima ? halves(beside + NR + lane / W * W)[lane % W] : 0.0f;
        for (int64_t i = 0; i < GROUP && g * GROUP + i < ins; i++) {
            const int64_t step = i / 4;
            const int value = bits == 8 ? bytes[step * NR * 4 + i % 4] - 128
                : step < STEPS / 2 ? bytes[step * NR * 4 + i % 4] & 15 : bytes[(step - STEPS / 2) * NR * 4 + i % 4] >> 4;
            out[g * GROUP + i] = minima ? scale * float(value) + low : scale * float(bits == 8 ? value : value - 8);
        }
    }
}

}  // namespace
