// What surrounds the matrix products of a training step: norms, rotations, gates, and the softmax over the vocabulary.
//
// In: rows of bf16 (products) and fp32 (residual stream). Out: the same; all arithmetic is fp32. Each row is computed by one
// thread and sums over rows run in fixed blocks, so results do not depend on the number of threads. The threads are torch's
// own: this file is linked without an OpenMP library. Python's side, and the torch twin of each function, is fused.py.
#include "kernels/trees.h"

extern "C" {  // of the OpenMP library that torch has loaded
void GOMP_parallel(void (*work)(void*), void* argument, unsigned threads, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);
}

namespace {

// `work(i)` for each of `count` parts, in as many threads as torch uses.
template <class Work> void each(int64_t count, Work work) {
    struct Job { Work* work; int64_t count; } job{&work, count};
    auto run = [](void* given) {
        Job* j = static_cast<Job*>(given);
        const int64_t id = omp_get_thread_num(), of = omp_get_num_threads();
        for (int64_t i = j->count * id / of; i < j->count * (id + 1) / of; i++) (*j->work)(i);
    };
    GOMP_parallel(run, &job, count < 2 ? 1 : 0, 0);
}

// As `each`, of parts of unequal size: a thread that is free takes the next.
template <class Work> void each_next(int64_t count, Work work) {
    struct Job { Work* work; int64_t count; std::atomic<int64_t> next; } job{&work, count, {0}};
    auto run = [](void* given) {
        Job* j = static_cast<Job*>(given);
        for (int64_t i; (i = j->next.fetch_add(1)) < j->count;) (*j->work)(i);
    };
    GOMP_parallel(run, &job, count < 2 ? 1 : 0, 0);
}

typedef uint16_t bf16;
constexpr int BLOCK = 64;  // rows whose share of a norm's gradient is summed together

inline float wide(bf16 x) { uint32_t bits = uint32_t(x) << 16; float f; memcpy(&f, &bits, 4); return f; }
inline float wide(float x) { return x; }
inline bf16 narrow(float x) {
    uint32_t bits; memcpy(&bits, &x, 4);
    return bf16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
inline void put(float* p, V x) { store(p, x); }
inline void put(bf16* p, V x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x))));
#else
    U bits = reinterpret_cast<U>(x);
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    *reinterpret_cast<B2*>(p) = __builtin_convertvector(bits, B2);
#endif
}
inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) { *p = narrow(x); }
inline float most(V x) { float m = x[0]; for (int i = 1; i < W; i++) m = x[i] > m ? x[i] : m; return m; }
inline V sigmoid(V x) { return 1.0f / (1.0f + exp_(-x)); }
inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Log-probability of each row's target; with `slope` the logits become its gradient, onehot - p.
template <class T> void score(T* logits, const int64_t* targets, float* logprobs, int64_t rows, int64_t n, bool slope) {
    each(rows, [&](int64_t r) {
        T* x = logits + r * n;
        int64_t j = 0;
        V high = all(-3.0e38f);
        for (; j + W <= n; j += W) { V v = load(x + j); high = v > high ? v : high; }
        float top = most(high);
        for (int64_t i = j; i < n; i++) top = wide(x[i]) > top ? wide(x[i]) : top;
        V parts[4] = {};
        float rest = 0;
        int64_t k = 0;
        for (; k + 4 * W <= n; k += 4 * W)
            for (int u = 0; u < 4; u++) parts[u] += exp_(load(x + k + u * W) - top);
        for (; k + W <= n; k += W) parts[0] += exp_(load(x + k) - top);
        for (int64_t i = k; i < n; i++) rest += expf(wide(x[i]) - top);
        const float total = top + logf(sum((parts[0] + parts[1]) + (parts[2] + parts[3])) + rest);
        const int64_t target = targets[r];
        const float found = wide(x[target]) - total;
        logprobs[r] = found;
        if (!slope) return;
        for (k = 0; k + W <= n; k += W) put(x + k, -exp_(load(x + k) - total));
        for (; k < n; k++) put(x + k, -expf(wide(x[k]) - total));
        put(x + target, -expm1f(found));
    });
}

}  // namespace

extern "C" {

void score_bf16(bf16* logits, const int64_t* targets, float* logprobs, int64_t rows, int64_t n, int slope) {
    score(logits, targets, logprobs, rows, n, slope != 0);
}
void score_fp32(float* logits, const int64_t* targets, float* logprobs, int64_t rows, int64_t n, int slope) {
    score(logits, targets, logprobs, rows, n, slope != 0);
}

// x + more (if given) into `sum_out` (if given), and weight x / rms(x) of the sum into `out` (if given); `inverse` is 1 / rms.
void norm(const float* x, const bf16* more, const float* weight, float eps, float* sum_out, bf16* out, float* inverse, int64_t rows, int64_t d) {
    each(rows, [&](int64_t r) {
        const float* a = x + r * d;
        const bf16* b = more ? more + r * d : nullptr;
        float* s = sum_out ? sum_out + r * d : nullptr;
        V squares = {};
        float rest = 0;
        int64_t j = 0;
        for (; j + W <= d; j += W) {
            V v = load(a + j);
            if (b) v += load(b + j);
            if (s) store(s + j, v);
            squares += v * v;
        }
        for (; j < d; j++) {
            float v = a[j] + (b ? wide(b[j]) : 0.0f);
            if (s) s[j] = v;
            rest += v * v;
        }
        if (!out) return;
        const float i = 1.0f / sqrtf((sum(squares) + rest) / d + eps);
        inverse[r] = i;
        const float* from = s ? s : a;
        bf16* o = out + r * d;
        for (j = 0; j + W <= d; j += W) put(o + j, load(from + j) * i * load(weight + j));
        for (; j < d; j++) o[j] = narrow(from[j] * i * weight[j]);
    });
}

// Gradient of a norm's input, added to `residual` (if given): dx, and in bf16 too (if wanted); shares of the weight's gradient
// by blocks of rows (if wanted).
void norm_backward(const bf16* slope, const float* x, const float* weight, const float* inverse, const float* residual,
                   float* dx, bf16* dx_narrow, float* shares, int64_t rows, int64_t d) {
    each((rows + BLOCK - 1) / BLOCK, [&](int64_t block) {
        float* share = shares ? shares + block * d : nullptr;
        if (share) memset(share, 0, d * sizeof(float));
        for (int64_t r = block * BLOCK; r < rows && r < (block + 1) * BLOCK; r++) {
            const bf16* g = slope + r * d;
            const float* a = x + r * d;
            const float i = inverse[r];
            V dots = {};
            float rest = 0;
            int64_t j = 0;
            for (; j + W <= d; j += W) dots += load(g + j) * load(weight + j) * load(a + j);
            for (; j < d; j++) rest += wide(g[j]) * weight[j] * a[j];
            const float mean = (sum(dots) + rest) * i * i / d;
            for (j = 0; j + W <= d; j += W) {
                V gradient = load(g + j), v = load(a + j);
                V found = (gradient * load(weight + j) - v * mean) * i;
                if (residual) found += load(residual + r * d + j);
                store(dx + r * d + j, found);
                if (dx_narrow) put(dx_narrow + r * d + j, found);
                if (share) store(share + j, load(share + j) + gradient * v * i);
            }
            for (; j < d; j++) {
                float gradient = wide(g[j]), found = (gradient * weight[j] - a[j] * mean) * i;
                if (residual) found += residual[r * d + j];
                dx[r * d + j] = found;
                if (dx_narrow) dx_narrow[r * d + j] = narrow(found);
                if (share) share[j] += gradient * a[j] * i;
            }
        }
    });
}

// Columns of `joint` (heads + 2 kv heads, each of d) into q, k, v with q and k rotated by each row's cos and sin (d / 2); with
// `back`, the other way and turned back: gradients.
void rotated(bf16* joint, bf16* q, bf16* k, bf16* v, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t kv, int64_t d, int back) {
    const int64_t half = d / 2, of = heads + 2 * kv;
    each(rows, [&](int64_t r) {
        const float *c = cos + r * half, *s = sin + r * half;
        for (int64_t h = 0; h < of; h++) {
            bf16* at = joint + (r * of + h) * d;
            bf16* own = h < heads ? q + (r * heads + h) * d : h < heads + kv ? k + (r * kv + h - heads) * d : v + (r * kv + h - heads - kv) * d;
            const bf16* from = back ? own : at;
            bf16* to = back ? at : own;
            if (h >= heads + kv) { memcpy(to, from, d * sizeof(bf16)); continue; }
            int64_t j = 0;
            for (; j + W <= half; j += W) {
                V a = load(from + j), b = load(from + half + j), turn = back ? -load(s + j) : load(s + j);
                put(to + j, a * load(c + j) - b * turn);
                put(to + half + j, b * load(c + j) + a * turn);
            }
            for (; j < half; j++) {
                float a = wide(from[j]), b = wide(from[half + j]), turn = back ? -s[j] : s[j];
                to[j] = narrow(a * c[j] - b * turn);
                to[half + j] = narrow(b * c[j] + a * turn);
            }
        }
    });
}

// silu(gate) * up; gate and up are the halves of each row of `gates`.
void gated(const bf16* gates, bf16* out, int64_t rows, int64_t n) {
    each(rows, [&](int64_t r) {
        const bf16 *g = gates + 2 * r * n, *u = g + n;
        int64_t j = 0;
        for (; j + W <= n; j += W) { V x = load(g + j); put(out + r * n + j, x * sigmoid(x) * load(u + j)); }
        for (; j < n; j++) { float x = wide(g[j]); out[r * n + j] = narrow(x * sigmoid(x) * wide(u[j])); }
    });
}

// Gradients of gate and up from the output's, and the output again (if wanted).
void gated_backward(const bf16* gates, const bf16* slope, bf16* dgates, bf16* out, int64_t rows, int64_t n) {
    each(rows, [&](int64_t r) {
        const bf16 *g = gates + 2 * r * n, *u = g + n, *dy = slope + r * n;
        bf16 *dg = dgates + 2 * r * n, *du = dg + n;
        int64_t j = 0;
        for (; j + W <= n; j += W) {
            V x = load(g + j), up = load(u + j), d = load(dy + j), s = sigmoid(x), silu = x * s;
            put(dg + j, d * up * (s + silu * (1.0f - s)));
            put(du + j, d * silu);
            if (out) put(out + r * n + j, silu * up);
        }
        for (; j < n; j++) {
            float x = wide(g[j]), up = wide(u[j]), d = wide(dy[j]), s = sigmoid(x), silu = x * s;
            dg[j] = narrow(d * up * (s + silu * (1.0f - s)));
            du[j] = narrow(d * silu);
            if (out) out[r * n + j] = narrow(silu * up);
        }
    });
}

// Attention over token trees (see kernels/trees.h): q and out (T, heads, depth), k and v (T, kv, depth), logs (T, heads).
void attend(const int64_t* units, const int64_t* segments, const int64_t* ranges, int64_t count, int64_t heads, int64_t kv, int64_t depth,
            const bf16* q, const bf16* k, const bf16* v, bf16* out, float* logs) {
    each_next(count * kv, [&](int64_t i) {
        attend_unit({units, segments, ranges}, units + 4 * (i / kv), {heads, kv, depth}, i % kv, q, k, v, out, logs);
    });
}
void attend_backward(const int64_t* units, const int64_t* segments, const int64_t* ranges, int64_t count, int64_t heads, int64_t kv, int64_t depth,
                     const bf16* q, const bf16* k, const bf16* v, const float* logs, const bf16* slope, bf16* dq, bf16* dk, bf16* dv) {
    each_next(count * kv, [&](int64_t i) {
        attend_unit_backward({units, segments, ranges}, units + 4 * (i / kv), {heads, kv, depth}, i % kv, q, k, v, logs, slope, dq, dk, dv);
    });
}

}
