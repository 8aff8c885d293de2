// One forward of a Llama-shaped model over the slots of a KV cache, for a CPU: every row's sums run in one order whatever the
// other rows are, so an answer does not depend, not in its last bit, on what shares the batch, on chunks or on threads.
// Rows (a token of a slot at a position) of prompts and of answers mix freely. Weights lie in panels of NR outputs, as fp32,
// bf16 or int8 with a scale per output; sums are fp32. Compiled where it runs by native.py, which documents the arrays.

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <sched.h>
#include <thread>
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
typedef int8_t B1 __attribute__((vector_size(W), aligned(1)));
typedef uint16_t B2 __attribute__((vector_size(W * 2), aligned(2)));

inline V load(const float* p) { return *reinterpret_cast<const VU*>(p); }
inline void store(float* p, V x) { *reinterpret_cast<VU*>(p) = x; }
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
inline V all(float x) { V v = {}; return v + x; }
inline float sum(V x) { float s = 0; for (int i = 0; i < W; i++) s += x[i]; return s; }

inline V exp_(V x) {  // Cephes' expf: 2^n times a polynomial, relative error 2e-7
    x = x > 88.0f ? all(88.0f) : x;
    V low = all(-87.0f);
    I under = x < low;
    x = under ? low : x;
    V n = x * 1.44269504088896341f;
    V half = n < 0.0f ? all(-0.5f) : all(0.5f);
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

// ---- threads: one pool for the process; inside a job, barriers spin and then yield ----

struct Pool {
    int n = 1, active = 1, resting = 0, pause_calls = 8;
    std::atomic<int> late{0};          // times that a thread waited long, and for a good part of the phase, in this call
    static int64_t clock() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
    std::mutex one;
    std::vector<std::thread> threads;
    std::vector<int> cores;            // that new threads may run on; empty: those of the thread that makes them
    std::atomic<uint32_t> generation{0}, arrived{0}, phase{0}, inner_arrived{0}, inner_phase{0};
    void (*job)(void*, int, int) = nullptr;
    void* argument = nullptr;

    void grow(int wanted) {
        for (; n < wanted; n++) {
            uint32_t seen = generation.load();
            threads.emplace_back([this, id = n, seen]() mutable {
                roam();
                for (;;) {
                    for (int i = 0; i < 2000 && generation.load(std::memory_order_acquire) == seen; i++) pause();
                    while (generation.load(std::memory_order_acquire) == seen) generation.wait(seen);
                    seen = generation.load(std::memory_order_acquire);
                    if (id < active) job(argument, id, active);
                    barrier();
                }
            });
            threads.back().detach();
        }
    }
    // OpenMP binds the main thread to one core, and a thread inherits that of the thread that makes it.
    void roam() {
#if defined(__linux__)
        if (cores.empty()) return;
        cpu_set_t set;
        CPU_ZERO(&set);
        for (int core : cores) CPU_SET(core, &set);
        sched_setaffinity(0, sizeof(set), &set);
#endif
    }
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void run(void (*what)(void*, int, int), void* with, int wanted) {
        std::lock_guard<std::mutex> alone(one);
        if (wanted > 1 && resting > 0) { resting--; wanted = 1; }
        if (wanted == 1) { active = 1; what(with, 0, 1); return; }
        grow(wanted);
        late.store(0, std::memory_order_relaxed);
        job = what; argument = with; active = wanted;
        generation.fetch_add(1, std::memory_order_release);
        generation.notify_all();
        job(argument, 0, active);
        barrier();
        // Somebody else has a core: whoever waits at a barrier waits for a turn of the scheduler. One thread is faster then, and says
        // the same; after a while, each time longer, several are tried again.
        if (late.load(std::memory_order_relaxed) > 1) { resting = pause_calls; pause_calls = pause_calls < 512 ? 2 * pause_calls : 1024; }
        else if (pause_calls > 8) pause_calls--;
    }
    void barrier(int of = 0) {
        uint32_t members = of ? of : n;
        if (members == 1) return;
        std::atomic<uint32_t>& count = of ? inner_arrived : arrived;
        std::atomic<uint32_t>& turn = of ? inner_phase : phase;
        uint32_t now = turn.load(std::memory_order_acquire);
        if (count.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
            count.store(0, std::memory_order_relaxed);
            turn.store(now + 1, std::memory_order_release);
            return;
        }
        static thread_local int64_t left = 0;       // when this thread left the barrier before
        int64_t since = 0;
        for (int i = 0; turn.load(std::memory_order_acquire) == now; i++) {
            if (i < 3000) { pause(); continue; }
            if (i == 3000) since = clock();
            sched_yield();
        }
        const int64_t here = clock();
        if (since && 4 * (here - since) > here - left) late.fetch_add(1, std::memory_order_relaxed);
        left = here;
    }
};
Pool& pool() { static Pool* the = new Pool; return *the; }

// ---- products ----

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
    if (m.kind == 0) product<float>(m, first, last, N, x, ldx, out, ldo, add);
    else if (m.kind == 1) product<uint16_t>(m, first, last, N, x, ldx, out, ldo, add);
    else product<int8_t>(m, first, last, N, x, ldx, out, ldo, add);
    low(m, first, last, N, x, ldx, out, ldo);
}

inline int64_t panels(const Matrix& m) { return (m.outs + NR - 1) / NR; }
inline int64_t padded(int64_t n) { return (n + NR - 1) / NR * NR; }

// ---- the model ----

struct Layer { const float *norm1, *norm2, *q_norm, *k_norm; Matrix qkv, out, gate_up, down; float *keys, *values; };

struct Model {
    int64_t width, heads, kv_heads, head, inner, vocab, context, layers;
    float eps;
    const float *embed, *norm, *cos, *sin;
    Matrix top;
    std::vector<Layer> layer;
    std::vector<float> x, qkv, mixed, gates, act;
    std::vector<std::vector<float>> own;       // per thread: normed rows and attention scores
};

// Activations of one layer's rows that a backward pass reads, written where the caller wants them: the residual stream before the layer
// and after its attention, the queries and keys as projected (null without norms of heads), heads after norm and rotation with values,
// mixed values, and gate and up in alternating panels.
struct Trace { float *before, *projected, *heads, *mixed, *middle, *gates; };

struct Call {
    Model* m;
    int64_t N; const int64_t *tokens, *slots, *positions;
    const int64_t *roots, *shared;          // of each row: a slot that holds the same first `shared` positions; null: none
    int64_t R; const int64_t* read;
    float *hidden, *logits, *total; int64_t* best;
    const Trace* trace; float* after;       // of every layer, and the residual stream after the last; null: nothing is kept
    std::atomic<int64_t> next[256];
};

float mean_square(const float* x, int64_t n) {
    V acc = {};
    int64_t i = 0;
    for (; i + W <= n; i += W) acc += load(x + i) * load(x + i);
    float s = sum(acc);
    for (; i < n; i++) s += x[i] * x[i];
    return s / float(n);
}

void norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
    const float r = 1.0f / std::sqrt(mean_square(x, n) + eps);
    for (int64_t i = 0; i < n; i++) out[i] = weight[i] * (x[i] * r);
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

// Keys and values of the first `shared` positions are read from elsewhere: a prefix that many slots have stays in the core's cache.
void attend(const Model& m, const float* q, const float* keys, const float* values, const float* shared_keys, const float* shared_values,
            int64_t shared, int64_t seen, float* scores, float* out) {
    const int64_t D = m.head;
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

void share(int64_t work, int id, int of, int64_t& first, int64_t& last) { first = work * id / of; last = work * (id + 1) / of; }

void forward(void* given, int id, int of) {
    Call& call = *static_cast<Call*>(given);
    Model& m = *call.m;
    const int64_t N = call.N, D = m.head, H = m.heads, K = m.kv_heads, G = H / K, width = m.width;
    const int64_t ldq = padded((H + 2 * K) * D), ldx = padded(width), ldm = H * D, ldi = padded(m.inner);
    float *x = m.x.data(), *qkv = m.qkv.data(), *mixed = m.mixed.data(), *gates = m.gates.data(), *act = m.act.data();
    float *normed = m.own[id].data(), *scores = normed + N * width;
    Pool& team = pool();
    int64_t first, last;
    share(N, id, of, first, last);
    for (int64_t r = first; r < last; r++) std::memcpy(x + r * ldx, m.embed + call.tokens[r] * width, width * sizeof(float));
    team.barrier(of);
    for (int64_t l = 0; l < m.layers; l++) {
        const Layer& y = m.layer[l];
        if (call.trace) {
            const Trace& t = call.trace[l];
            qkv = t.heads; mixed = t.mixed; gates = t.gates;
            share(N, id, of, first, last);
            std::memcpy(t.before + first * ldx, x + first * ldx, (last - first) * ldx * sizeof(float));
        }
        for (int64_t r = 0; r < N; r++) norm(x + r * ldx, y.norm1, m.eps, width, normed + r * width);
        share(panels(y.qkv), id, of, first, last);
        product(y.qkv, first, last, N, normed, width, qkv, ldq, false);
        team.barrier(of);
        share(N, id, of, first, last);
        for (int64_t r = first; r < last; r++) {
            const int64_t at = call.positions[r];
            const float *cos = m.cos + at * (D / 2), *sin = m.sin + at * (D / 2);
            if (call.trace && call.trace[l].projected)
                std::memcpy(call.trace[l].projected + r * (H + K) * D, qkv + r * ldq, (H + K) * D * sizeof(float));
            for (int64_t h = 0; h < H + K; h++) {
                float* head = qkv + r * ldq + h * D;
                const float* weight = h < H ? y.q_norm : y.k_norm;
                if (weight) norm(head, weight, m.eps, D, head);
                rotate(head, cos, sin, D / 2);
            }
            for (int64_t k = 0; k < K; k++) {
                const int64_t place = ((call.slots[r] * K + k) * m.context + at) * D;
                std::memcpy(y.keys + place, qkv + r * ldq + (H + k) * D, D * sizeof(float));
                std::memcpy(y.values + place, qkv + r * ldq + (H + K + k) * D, D * sizeof(float));
            }
        }
        team.barrier(of);
        for (int64_t item; (item = call.next[l % 256].fetch_add(1)) < N * K;) {
            // Rows of a group one after the other, head by head: they read the same prefix.
            const int64_t r = item % N, k = item / N, from = (call.slots[r] * K + k) * m.context * D, seen = call.positions[r] + 1;
            const int64_t root = call.roots ? (call.roots[r] * K + k) * m.context * D : from;
            const int64_t shared = !call.roots ? 0 : call.shared[r] < seen ? call.shared[r] : seen;
            for (int64_t g = 0; g < G; g++)
                attend(m, qkv + r * ldq + (k * G + g) * D, y.keys + from, y.values + from, y.keys + root, y.values + root, shared, seen,
                       scores, mixed + r * ldm + (k * G + g) * D);
        }
        team.barrier(of);
        if (id == 0) call.next[(l + 128) % 256] = 0;
        share(panels(y.out), id, of, first, last);
        product(y.out, first, last, N, mixed, ldm, x, ldx, true);
        team.barrier(of);
        if (call.trace) {
            share(N, id, of, first, last);
            std::memcpy(call.trace[l].middle + first * ldx, x + first * ldx, (last - first) * ldx * sizeof(float));
        }
        for (int64_t r = 0; r < N; r++) norm(x + r * ldx, y.norm2, m.eps, width, normed + r * width);
        share(panels(y.gate_up) / 2, id, of, first, last);
        product(y.gate_up, 2 * first, 2 * last, N, normed, width, gates, 2 * ldi, false);
        for (int64_t r = 0; r < N; r++)
            for (int64_t p = first; p < last; p++)
                for (int c = 0; c < NR; c += W) {
                    const V g = load(gates + r * 2 * ldi + 2 * p * NR + c), u = load(gates + r * 2 * ldi + (2 * p + 1) * NR + c);
                    store(act + r * ldi + p * NR + c, g / (1.0f + exp_(-g)) * u);
                }
        team.barrier(of);
        share(panels(y.down), id, of, first, last);
        product(y.down, first, last, N, act, ldi, x, ldx, true);
        team.barrier(of);
    }
    if (call.after && id == 0) std::memcpy(call.after, x, N * ldx * sizeof(float));
    for (int64_t i = 0; i < call.R; i++) norm(x + call.read[i] * ldx, m.norm, m.eps, width, normed + i * width);
    if (call.hidden && id == 0) std::memcpy(call.hidden, normed, call.R * width * sizeof(float));
    if (!call.logits) return;
    const int64_t ldv = padded(m.vocab);
    share(panels(m.top), id, of, first, last);
    product(m.top, first, last, call.R, normed, width, call.logits, ldv, false);
    team.barrier(of);
    share(call.R, id, of, first, last);
    for (int64_t i = first; i < last; i++) {
        float* z = call.logits + i * ldv;
        for (int64_t v = m.vocab; v < ldv; v++) z[v] = -INFINITY;
        int64_t best = 0;
        float top = z[0];
        V tops = load(z);
        for (int64_t v = W; v < ldv; v += W) { V a = load(z + v); tops = a > tops ? a : tops; }
        for (int j = 0; j < W; j++) top = tops[j] > top || std::isnan(tops[j]) ? tops[j] : top;
        while (best < m.vocab - 1 && z[best] != top) best++;
        V acc = {};
        for (int64_t v = 0; v < ldv; v += W) acc += exp_(load(z + v) - top);
        call.best[i] = best;
        call.total[i] = top + std::log(sum(acc));
    }
}

// act = silu(gate) up again from a trace's gates, and from its slope those of gate and up.
struct GatedCall { int64_t N, inner; const float *gates, *slope; float *act, *gate, *up; };

void gated(void* given, int id, int of) {
    GatedCall& call = *static_cast<GatedCall*>(given);
    const int64_t inner = call.inner, ldi = padded(inner);
    int64_t first, last;
    share(call.N, id, of, first, last);
    for (int64_t r = first; r < last; r++)
        for (int64_t i = 0; i < inner; i += W) {
            const float* g = call.gates + r * 2 * ldi + i / NR * 2 * NR + i % NR;
            const int64_t at = r * inner + i, size = (inner - i) * sizeof(float);
            const bool full = i + W <= inner;
            V slope = {};
            if (full) slope = load(call.slope + at);
            else std::memcpy(&slope, call.slope + at, size);
            const V x = load(g), u = load(g + NR), s = 1.0f / (1.0f + exp_(-x));
            const V act = x * s * u, gate = slope * u * s * (1.0f + x * (1.0f - s)), up = slope * x * s;
            if (full) { store(call.act + at, act); store(call.gate + at, gate); store(call.up + at, up); continue; }
            std::memcpy(call.act + at, &act, size); std::memcpy(call.gate + at, &gate, size); std::memcpy(call.up + at, &up, size);
        }
}

// The output matrix on rows that are normed already.
struct HeadCall { Model* m; int64_t R; const float* hidden; float* logits; };

void head(void* given, int id, int of) {
    HeadCall& call = *static_cast<HeadCall*>(given);
    const Matrix& top = call.m->top;
    const int64_t ldv = padded(call.m->vocab);
    int64_t first, last;
    share(panels(top), id, of, first, last);
    product(top, first, last, call.R, call.hidden, call.m->width, call.logits, ldv, false);
}

// Log-probability of each row's target under softmax(logits / temperature), over its kept tokens if it has any: those of row i are
// kept[ends[i]] to kept[ends[i + 1]], in ascending order. A row is summed in one order, whatever the other rows and the threads are.
struct DrawnCall {
    int64_t N, stride, vocab;
    const float *logits, *temperature; const int64_t *targets, *ends, *kept;
    float *logprobs, *entropy;
};

void drawn(void* given, int id, int of) {
    DrawnCall& call = *static_cast<DrawnCall*>(given);
    std::vector<float> scaled(call.vocab + W);
    float* y = scaled.data();
    int64_t first, last;
    share(call.N, id, of, first, last);
    for (int64_t i = first; i < last; i++) {
        const float *z = call.logits + i * call.stride, t = call.temperature[i];
        const int64_t from = call.ends ? call.ends[i] : 0, count = call.ends ? call.ends[i + 1] - from : 0;
        const int64_t n = count ? count : call.vocab;
        if (count) for (int64_t j = 0; j < n; j++) y[j] = z[call.kept[from + j]] / t;
        else for (int64_t j = 0; j < n; j++) y[j] = z[j] / t;
        for (int64_t j = n; j < (n + W - 1) / W * W; j++) y[j] = -INFINITY;
        V tops = load(y);
        for (int64_t j = W; j < n; j += W) { V a = load(y + j); tops = a > tops ? a : tops; }
        float top = tops[0];
        for (int j = 1; j < W; j++) top = tops[j] > top ? tops[j] : top;
        V acc = {};
        for (int64_t j = 0; j < n; j += W) acc += exp_(load(y + j) - top);
        const float total = top + std::log(sum(acc));
        call.logprobs[i] = z[call.targets[i]] / t - total;
        if (!call.entropy) continue;
        double mean = 0;
        for (int64_t j = 0; j < n; j++) if (y[j] > top - 100.0f) mean += double(std::exp(y[j] - total)) * (total - y[j]);
        call.entropy[i] = float(mean);
    }
}

}  // namespace

extern "C" {

int panel_width() { return NR; }

// The cores that the pool's threads may run on; threads that exist stay where they are.
void pool_cores(const int* cores, int count) { pool().cores.assign(cores, cores + count); }

// ints: width heads kv_heads head inner vocab context layers; pointers: embed norm cos sin, top, then per layer norm1 norm2 q_norm
// k_norm qkv out gate_up down keys values, where a matrix is: kind (0 fp32, 1 bf16, 2 int8), data, scale, bias, how many low-rank products
// beside it, and for each: base, outs, step, rank, a, b, scale.
void* model_new(const int64_t* n, float eps, void** p) {
    Model* m = new Model{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], eps, nullptr, nullptr, nullptr, nullptr, {}, {}, {}, {}, {}, {}, {}, {}};
    auto next = [&] { return static_cast<float*>(*p++); };
    auto matrix = [&](int64_t outs, int64_t ins) {
        Matrix x{outs, ins, reinterpret_cast<int64_t>(p[0]), p[1], static_cast<float*>(p[2]), static_cast<float*>(p[3]), {}};
        auto number = [&](int i) { return reinterpret_cast<int64_t>(p[i]); };
        int64_t count = number(4);
        for (p += 5; count > 0; count--, p += 7)
            x.low.push_back({number(0), number(1), number(2), number(3), static_cast<float*>(p[4]), static_cast<float*>(p[5]), static_cast<float*>(p[6])});
        return x;
    };
    m->embed = next(); m->norm = next(); m->cos = next(); m->sin = next();
    m->top = matrix(m->vocab, m->width);
    for (int64_t l = 0; l < m->layers; l++) {
        Layer y{};
        y.norm1 = next(); y.norm2 = next(); y.q_norm = next(); y.k_norm = next();
        y.qkv = matrix((m->heads + 2 * m->kv_heads) * m->head, m->width);
        y.out = matrix(m->width, m->heads * m->head);
        y.gate_up = matrix(2 * padded(m->inner), m->width);
        y.down = matrix(m->width, padded(m->inner));
        y.keys = next(); y.values = next();
        m->layer.push_back(y);
    }
    return m;
}

void model_free(void* m) { delete static_cast<Model*>(m); }

// Read or say N tokens; of the rows `read` (R of them) give hidden states after the final norm and/or logits (rows of `vocab` rounded
// up to panels), each row's best token and the logsumexp of its logits.
void model_forward(void* model, int threads, int64_t N, const int64_t* tokens, const int64_t* slots, const int64_t* positions,
                   const int64_t* roots, const int64_t* shared, int64_t R, const int64_t* read, float* hidden, float* logits, int64_t* best, float* total, float* const* trace, float* after) {
    Model& m = *static_cast<Model*>(model);
    const int64_t most = N > R ? N : R;
    m.x.resize(N * padded(m.width)); m.act.resize(N * padded(m.inner));
    if (!trace) {
        m.qkv.resize(N * padded((m.heads + 2 * m.kv_heads) * m.head));
        m.mixed.resize(N * m.heads * m.head); m.gates.resize(N * 2 * padded(m.inner));
    }
    if (int(m.own.size()) < threads) m.own.resize(threads);
    for (auto& own : m.own) own.resize(most * m.width + padded(m.context) + W);
    Call call{&m, N, tokens, slots, positions, roots, shared, R, read, hidden, logits, total, best, reinterpret_cast<const Trace*>(trace), after, {}};
    for (auto& counter : call.next) counter = 0;
    pool().run(forward, &call, threads);
}

// Logits (rows of `vocab` rounded up to panels) of R hidden states after the final norm.
void model_head(void* model, int threads, int64_t R, const float* hidden, float* logits) {
    HeadCall call{static_cast<Model*>(model), R, hidden, logits};
    pool().run(head, &call, threads);
}

// N rows: `gates` as a trace has them, everything else `inner` floats a row.
void gated_backward(int threads, int64_t N, int64_t inner, const float* gates, const float* slope, float* act, float* gate, float* up) {
    GatedCall call{N, inner, gates, slope, act, gate, up};
    pool().run(gated, &call, threads);
}

// Log-probabilities and (if not null) entropies of N rows of logits, `stride` floats apart; `ends` null: every row has all tokens.
void drawn_logprobs(int threads, int64_t N, int64_t stride, int64_t vocab, const float* logits, const float* temperature, const int64_t* targets,
                    const int64_t* ends, const int64_t* kept, float* logprobs, float* entropy) {
    DrawnCall call{N, stride, vocab, logits, temperature, targets, ends, kept, logprobs, entropy};
    pool().run(drawn, &call, threads);
}

}
