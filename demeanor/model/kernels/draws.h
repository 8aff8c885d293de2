// One token a row, drawn from softmax(logits / temperature) narrowed by top_k, top_p and min_p, by an exponential race (see engine/sampling.py,
// whose `narrowed` and `race` say the same with torch). A row's token depends on that row and its random numbers only.
#pragma once
#include <algorithm>
#include "vectors.h"

namespace {

// The Mersenne Twister (Matsumoto and Nishimura 1998) as torch seeds and reads it: the numbers are those of torch.rand(dtype=float64).
constexpr int TWISTER = 624, TWIST = 397;
struct Twister { uint32_t state[TWISTER], at; };

void seed(Twister& t, uint32_t value) {
    t.state[0] = value;
    for (int i = 1; i < TWISTER; i++) t.state[i] = 1812433253u * (t.state[i - 1] ^ t.state[i - 1] >> 30) + uint32_t(i);
    t.at = TWISTER;
}

inline uint32_t twisted(uint32_t a, uint32_t b, uint32_t far) {
    const uint32_t y = (a & 0x80000000u) | (b & 0x7fffffffu);
    return far ^ y >> 1 ^ (-(b & 1u) & 0x9908b0dfu);
}

void twist(uint32_t* s) {
    int i = 0;
    for (; i < TWISTER - TWIST; i++) s[i] = twisted(s[i], s[i + 1], s[i + TWIST]);
    for (; i < TWISTER - 1; i++) s[i] = twisted(s[i], s[i + 1], s[i + TWIST - TWISTER]);
    s[i] = twisted(s[i], s[0], s[TWIST - 1]);
}

// The next n numbers in [0, 1): 53 bits each, rounded to fp32.
void uniforms(Twister& t, int64_t n, float* out) {
    uint32_t words[TWISTER];
    for (int64_t done = 0; done < n;) {
        if (t.at >= TWISTER) { twist(t.state); t.at = 0; }
        const int64_t left = (TWISTER - t.at) / 2, count = n - done < left ? n - done : left;
        const uint32_t* from = t.state + t.at;
        for (int64_t i = 0; i < 2 * count; i++) {
            uint32_t y = from[i];
            y ^= y >> 11;
            y ^= y << 7 & 0x9d2c5680u;
            y ^= y << 15 & 0xefc60000u;
            words[i] = y ^ y >> 18;
        }
        for (int64_t i = 0; i < count; i++) {
            const uint64_t bits = (uint64_t(words[2 * i]) << 32 | words[2 * i + 1]) & ((uint64_t(1) << 53) - 1);
            out[done + i] = float(double(bits) * 0x1p-53);
        }
        t.at += uint32_t(2 * count);
        done += count;
    }
}

inline V log_(V x) {  // Cephes' logf, for normal numbers above 0: relative error 1e-7
    const U bits = reinterpret_cast<U>(x);
    I exponent = reinterpret_cast<I>(bits >> 23) - 126;
    V m = reinterpret_cast<V>((bits & 0x007fffffu) | 0x3f000000u);  // [0.5, 1)
    const I low = m < 0.707106781186547524f;
    exponent += low;                                                // a true lane is -1
    m = (low ? m + m : m) - 1.0f;
    const V e = __builtin_convertvector(exponent, V), z = m * m;
    V y = all(7.0376836292e-2f);
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * z + e * -2.12194440e-4f - 0.5f * z;
    return m + y + e * 0.693359375f;
}

// How long a token waits: -log(1 - u), exponentially distributed. With w = 1 - u rounded, log(w) u / (1 - w) undoes the rounding.
inline V wait(V u) {
    const V w = 1.0f - u, rest = 1.0f - w;
    const V some = rest > 0.0f ? rest : all(1.0f), safe = w > 1e-30f ? w : all(1e-30f);
    const V found = rest > 0.0f ? -log_(safe) * (u / some) : u;
    return found > 1e-30f ? found : all(1e-30f);
}

// Which lanes are at least `least`, a bit each.
inline uint32_t at_least(V x, float least) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(least), _CMP_GE_OQ);
#elif defined(__AVX2__)
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(x), _mm256_set1_ps(least), _CMP_GE_OQ)));
#else
    uint32_t found = 0;
    for (int i = 0; i < W; i++) found |= uint32_t(x[i] >= least) << i;
    return found;
#endif
}

// Calls what(place, weight) for the weights of at least `floor`, in order; `w` may be read up to a multiple of W.
template <typename F>
void each_of(const float* w, int64_t n, float floor, F what) {
    for (int64_t v = 0; v < n; v += W)
        for (uint32_t lanes = at_least(load(w + v), floor); lanes; lanes &= lanes - 1) {
            const int64_t at = v + __builtin_ctz(lanes);
            if (at < n) what(at, w[at]);
        }
}

// Tokens that a row may draw with their weights, ascending, and memory for finding them.
struct Kept {
    std::vector<int32_t> tokens;
    std::vector<float> weights, uniform;
    std::vector<double> mass;
    std::vector<int32_t> count;
    std::vector<std::pair<float, int32_t>> edge;
};

// Weights are at most 1. A bucket is a sixteenth of a power of two.
constexpr int SHIFT = 19, BUCKETS = (0x3f800000 >> SHIFT) + 1;
inline int bucket(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return int(bits >> SHIFT); }

// The likeliest of n weights, of equal ones the first: as many as `most` (0: any number), and until they weigh `need`. They replace k.tokens, in
// ascending order. Weights below `floor` are left out; false: those above do not suffice.
bool likeliest(const float* w, int64_t n, int64_t most, double need, float floor, Kept& k) {
    k.mass.assign(BUCKETS, 0.0);
    k.count.assign(BUCKETS, 0);
    floor = floor > 0 ? floor : 1e-38f;    // a weight of 0 is never drawn
    each_of(w, n, floor, [&](int64_t, float x) { k.mass[bucket(x)] += x; k.count[bucket(x)]++; });
    int b = BUCKETS - 1;
    double weight = 0;
    int64_t number = 0;
    for (; b >= 0; b--) {
        if ((most && number + k.count[b] >= most) || weight + k.mass[b] >= need) break;
        weight += k.mass[b];
        number += k.count[b];
    }
    if (b < 0 && floor > 1e-38f) return false;
    k.edge.clear();
    k.tokens.clear();
    each_of(w, n, floor, [&](int64_t v, float x) {
        const int at = bucket(x);
        if (at > b) k.tokens.push_back(int32_t(v));
        else if (at == b) k.edge.push_back({-x, int32_t(v)});
    });
    std::sort(k.edge.begin(), k.edge.end());
    for (const auto& [minus, token] : k.edge) {
        if ((most && number >= most) || weight >= need) break;
        k.tokens.push_back(token);
        weight -= minus;
        number++;
    }
    std::sort(k.tokens.begin(), k.tokens.end());
    return true;
}

// Only these tokens of w, in their order.
void gather(const float* w, Kept& k) {
    k.weights.resize(k.tokens.size() + W);
    for (size_t i = 0; i < k.tokens.size(); i++) k.weights[i] = w[k.tokens[i]];
    for (size_t i = k.tokens.size(); i < k.weights.size(); i++) k.weights[i] = 0;
}

struct Narrowing { float temperature, top_p, min_p; int64_t top_k; };

// Weights of a row's tokens, relative to the likeliest one, and of which tokens one is drawn: k.tokens, or all if false. They are NaN or 0 where
// the greatest logit is infinite or none is a number: then no token is left by narrowing, and the draw is from all.
bool narrow(const float* logits, int64_t vocab, const Narrowing& s, float* w, Kept& k) {
    V tops = all(-INFINITY);
    for (int64_t v = 0; v < vocab; v += W) {
        V x = all(-INFINITY);
        if (v + W <= vocab) x = load(logits + v);
        else std::memcpy(&x, logits + v, (vocab - v) * sizeof(float));
        x = x / s.temperature;
        store(w + v, x);
        tops = x > tops ? x : tops;
    }
    float top = tops[0];
    for (int i = 1; i < W; i++) top = tops[i] > top ? tops[i] : top;
    double total = 0;
    for (int64_t v = 0; v < vocab; v += W) {
        const V e = exp_(load(w + v) - top);
        store(w + v, e);
        total += sum(e);
    }
    bool narrowed = false;
    constexpr float RARE = 0x1p-16f;      // most tokens of a vocabulary are less likely than this, relative to the likeliest
    if (s.top_k > 0 && s.top_k < vocab) {
        if (!likeliest(w, vocab, s.top_k, INFINITY, RARE, k)) likeliest(w, vocab, s.top_k, INFINITY, 0, k);
        narrowed = true;
    }
    if (s.top_p < 1) {
        if (narrowed) {                   // among those that top_k left
            gather(w, k);
            std::vector<int32_t> first = k.tokens;
            const int64_t n = int64_t(first.size());
            total = 0;
            for (int64_t i = 0; i < n; i++) total += k.weights[i];
            const std::vector<float> weights = k.weights;
            likeliest(weights.data(), n, 0, double(s.top_p) * total, 0, k);
            for (int32_t& token : k.tokens) token = first[token];
        } else {
            const double need = double(s.top_p) * total;
            if (!likeliest(w, vocab, 0, need, RARE, k)) likeliest(w, vocab, 0, need, 0, k);
            narrowed = true;
        }
        if (k.tokens.empty())             // the likeliest is kept whatever top_p is
            for (int64_t v = 0; v < vocab && k.tokens.empty(); v++) if (w[v] == 1.0f) k.tokens.push_back(int32_t(v));
    }
    if (s.min_p > 0) {
        if (narrowed) k.tokens.erase(std::remove_if(k.tokens.begin(), k.tokens.end(), [&](int32_t t) { return w[t] < s.min_p; }), k.tokens.end());
        else {
            k.tokens.clear();
            each_of(w, vocab, s.min_p, [&](int64_t v, float) { k.tokens.push_back(int32_t(v)); });
        }
        narrowed = true;
    }
    if (!narrowed || k.tokens.empty()) return false;
    gather(w, k);
    return true;
}

// The place whose weight divided by its wait is greatest, of equal ones the first; a weight of 0 never wins.
int64_t race(const float* w, const float* u, int64_t n) {
    V best = all(-1.0f);
    I place = {}, lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    for (int64_t v = 0; v < n; v += W) {
        const V x = load(w + v), speed = x > 0.0f ? x / wait(load(u + v)) : all(-1.0f);
        const I more = speed > best;
        best = more ? speed : best;
        place = more ? lane + int32_t(v) : place;
    }
    int64_t found = place[0];
    float most = best[0];
    for (int i = 1; i < W; i++)
        if (best[i] > most || (best[i] == most && place[i] < found)) { most = best[i]; found = place[i]; }
    return found;
}

// N rows of logits; of row i settings[4 i] and on: temperature, top_p, min_p, top_k. `counts`: of how many tokens each was drawn, 0 for all;
// where `kept` is not null, these tokens stand at kept[i], room for `vocab`.
struct DrawCall { int64_t N, stride, vocab; const float *logits, *settings; Twister* const* twisters; int64_t *tokens, *counts; int32_t* const* kept; };

void draw(void* given, int id, int of) {
    const DrawCall& call = *static_cast<DrawCall*>(given);
    const int64_t room = (call.vocab + W - 1) / W * W;
    Floats w(room), u(room, 0.0f);
    Kept k;
    int64_t first, last;
    share(call.N, id, of, first, last);
    for (int64_t i = first; i < last; i++) {
        const float* s = call.settings + 4 * i;
        const bool narrowed = narrow(call.logits + i * call.stride, call.vocab, {s[0], s[1], s[2], int64_t(s[3])}, w.data(), k);
        uniforms(*call.twisters[i], call.vocab, u.data());
        call.counts[i] = 0;
        if (!narrowed) { call.tokens[i] = race(w.data(), u.data(), call.vocab); continue; }
        const int64_t n = int64_t(k.tokens.size());
        k.uniform.assign(n + W, 0.5f);
        for (int64_t j = 0; j < n; j++) k.uniform[j] = u[k.tokens[j]];
        call.tokens[i] = k.tokens[race(k.weights.data(), k.uniform.data(), n)];
        call.counts[i] = n;
        if (call.kept && call.kept[i]) std::copy(k.tokens.begin(), k.tokens.end(), call.kept[i]);
    }
}

}  // namespace
