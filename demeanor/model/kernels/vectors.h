// Vectors of one register of floats, for AVX-512, AVX2 and any other CPU.
#pragma once
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <mutex>
#include <new>
#include <sched.h>
#include <thread>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, MR = 12;
#else
constexpr int W = 8, MR = 6;
#endif
constexpr int NR = 2 * W;
constexpr int MOST_RANK = 1024;

typedef float V __attribute__((vector_size(W * 4)));
typedef float VU __attribute__((vector_size(W * 4), aligned(4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef uint32_t UU __attribute__((vector_size(W * 4), aligned(4)));
typedef int8_t B1 __attribute__((vector_size(W), aligned(1)));
typedef uint16_t B2 __attribute__((vector_size(W * 2), aligned(2)));

inline V load(const float* p) { return *reinterpret_cast<const VU*>(p); }
inline void store(float* p, V x) { *reinterpret_cast<VU*>(p) = x; }
inline U load(const uint32_t* p) { return *reinterpret_cast<const UU*>(p); }
#if defined(__AVX512F__)  // GCC converts vectors of bytes one by one
inline V load(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
inline V load(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
#elif defined(__AVX2__)
inline V load(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))); }
inline V load(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
#else
inline V load(const int8_t* p) { return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const B1*>(p), I), V); }
inline V load(const uint16_t* p) {
    U wide = __builtin_convertvector(*reinterpret_cast<const B2*>(p), U) << 16;
    return reinterpret_cast<V>(wide);
}
#endif

// Memory whose vectors do not cross cache lines.
template <typename T>
struct Aligned {
    typedef T value_type;
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Aligned&) const { return true; }
    template <typename X> struct rebind { typedef Aligned<X> other; };
};
typedef std::vector<float, Aligned<float>> Floats;

inline V all(float x) { V v = {}; return v + x; }
inline float sum(V x) { float s = 0; for (int i = 0; i < W; i++) s += x[i]; return s; }

// Cephes' expf: 2^n times a polynomial, relative error 2e-7. DOWN: no number is above 0, which saves steps and gives the same bits.
template <bool DOWN = false>
inline V exp_(V x) {
    if (!DOWN) x = x > 88.0f ? all(88.0f) : x;
    V low = all(-87.0f);
    I under = x < low;
    x = under ? low : x;
    V n = x * 1.44269504088896341f;
    V half = all(-0.5f);
    if (!DOWN) half = n < 0.0f ? half : all(0.5f);
    I whole = __builtin_convertvector(n + half, I);
    n = __builtin_convertvector(whole, V);
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    V y = all(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    I bits = (whole + 127) << 23;
    V found = y * reinterpret_cast<V>(bits);
    return under ? all(0.0f) : found;
}

// exp of numbers up to 80, relative error 4e-6, in half the steps: for what is rounded to bf16 next.
inline V coarse_exp(V x) {
    V n = x * 1.44269504088896341f;
    n = n < -200.0f ? all(-200.0f) : n;    // a NaN stays one
    V f = n;
#if defined(__AVX512F__)
    n = _mm512_roundscale_ps(n, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    n = (n + 12582912.0f) - 12582912.0f;   // 1.5 x 2^23
#endif
    f -= n;
    V y = all(9.582850150763988e-3f);      // 2^f, |f| <= 1/2
    y = y * f + 5.590642988681793e-2f;
    y = y * f + 0.24024099111557007f;
    y = y * f + 0.6931241750717163f;
    y = y * f + 1.0f;
#if defined(__AVX512F__)
    return _mm512_scalef_ps(y, n);
#else
    I bits = (__builtin_convertvector(n, I) + 127) << 23;
    V found = y * reinterpret_cast<V>(bits);
    return n < -126.0f ? all(0.0f) : found;
#endif
}

}  // namespace
