// One forward of a Llama-shaped model over the slots of a KV cache, for a CPU: every row's sums run in one order whatever the
// other rows are, so an answer does not depend, not in its last bit, on what shares the batch, on chunks or on threads.
// Rows (a token of a slot at a position) of prompts and of answers mix freely. Weights lie in panels of NR outputs, as fp32,
// bf16 or int8 with a scale per output; sums are fp32. Compiled where it runs by native.py, which documents the arrays.

#include "kernels/attention.h"
#include "kernels/draws.h"
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

// ---- the model ----

struct Layer { const float *norm1, *norm2, *q_norm, *k_norm; Matrix qkv, out, gate_up, down; };

struct Model {
    int64_t width, heads, kv_heads, head, inner, vocab, layers;
    float eps;
    Matrix embed;
    const float *norm, *cos, *sin;
    Matrix top;
    Pages cache;
    std::vector<Layer> layer;
    Floats x, normed, qkv, mixed, act, prepared, small, stretches;
    std::vector<Floats> own;                   // per thread: scratch of products and of attention
};

// Activations of one layer's rows that a backward pass reads, written where the caller wants them: the residual stream before the layer
// and after its attention, the queries and keys as projected (null without norms of heads), heads after norm and rotation with values,
// mixed values, and gate and up in alternating panels.
struct Trace { float *before, *projected, *heads, *mixed, *middle, *gates; };

struct Part { int64_t tile, stretch; };

struct Call {
    Model* m;
    int64_t N; const int64_t *tokens, *slots, *positions;
    int64_t R; const int64_t* read;
    float *hidden, *logits, *total; int64_t* best;
    const Trace* trace; float* after;       // of every layer, and the residual stream after the last; null: nothing is kept
    std::vector<Tile> tiles;
    std::vector<Part> parts;                // not empty: threads share tiles
    std::atomic<int64_t> next[256];
    std::vector<std::atomic<int64_t>> taken;   // tiles of each product, see `tiles`
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

// Attention of one layer. Many tiles: each thread takes the next (tile, kv head) when it is free. Few tiles of long sequences: the next
// stretch of one; what the stretches give is then added in their order, as one thread does it.
void attend_tiles(Call& call, int64_t l, int id, int of, const float* qkv, float* mixed, float* own) {
    Model& m = *call.m;
    const int64_t D = m.head, H = m.heads, K = m.kv_heads, G = H / K, ldq = padded((H + 2 * K) * D), ldm = H * D, count = call.tiles.size();
    auto queries = [&](const Tile& t, int64_t k) {
        return Queries{l, k, D, G, t.count, call.slots[t.first], call.positions[t.first], qkv + t.first * ldq + k * G * D, ldq};
    };
    if (call.parts.empty()) {
        for (int64_t item; (item = call.next[l % 256].fetch_add(1)) < count * K;) {
            // Tiles one after the other, head by head: those of a group read the same pages. The last of a prompt read most, so they begin.
            const int64_t k = item / count;
            const Tile& t = call.tiles[count - 1 - item % count];
            attend(m.cache, queries(t, k), own, mixed + t.first * ldm + k * G * D, ldm);
        }
        return;
    }
    const int64_t parts = call.parts.size(), size = mixed_floats(most_queries(G), m.cache.depth);
    auto found = [&](int64_t part, int64_t k, const Tile& t) {
        return mixed_at(aligned(m.stretches.data()) + (part * K + k) * size, t.count * G, m.cache.depth);
    };
    for (int64_t item; (item = call.next[l % 256].fetch_add(1)) < parts * K;) {
        const Part& part = call.parts[item / K];
        const Tile& t = call.tiles[part.tile];
        attend_stretch(m.cache, queries(t, item % K), part.stretch * STRETCH, aligned(own), found(item / K, item % K, t));
    }
    pool().barrier(of);
    for (int64_t i = 0; i < parts; i++) {
        if (call.parts[i].stretch) continue;
        const Tile& t = call.tiles[call.parts[i].tile];
        const int64_t keys = call.positions[t.first] + t.count;
        for (int64_t k = 0; k < K; k++) {
            if ((i + k) % of != id) continue;
            const Queries x = queries(t, k);
            const Mixed whole = found(i, k, t);
            for (int64_t s = 1; s < stretches(keys); s++)
                add_stretch(whole, found(i + s, k, t), first_query(x, s * STRETCH), t.count * G, m.cache.depth);
            finish(x, whole, m.cache.depth, mixed + t.first * ldm + k * G * D, ldm);
        }
    }
}

void forward(void* given, int id, int of) {
    Call& call = *static_cast<Call*>(given);
    Model& m = *call.m;
    const int64_t N = call.N, D = m.head, H = m.heads, K = m.kv_heads, width = m.width;
    const int64_t ldq = padded((H + 2 * K) * D), ldx = padded(width), ldm = H * D, ldi = padded(m.inner);
    float *x = m.x.data(), *qkv = m.qkv.data(), *mixed = m.mixed.data(), *gates = nullptr, *act = m.act.data();
    float *normed = m.normed.data(), *prepared = m.prepared.data(), *small = m.small.data();
    float *scratch = m.own[id].data(), *own = scratch + SCRATCH + 2 * ROWS * NR;
    Pool& team = pool();
    int64_t first, last;
    std::atomic<int64_t>* taken = call.taken.data();
    // Rows that a product reads as its format wants them, and its adapters' inner products.
    auto ready = [&](const Matrix& y, const float* rows, int64_t ld, int64_t count, bool whole) {
        const Input in{rows, ld, prepared, count};
        if (!whole && prepared_floats(y.kind, count, y.ins)) {
            share(count, id, of, first, last);
            prepare(y, rows, ld, count, first, last, prepared);
            team.barrier(of);
        }
        if (y.low.rank) { low(y, in, count, small, id, of, *taken, scratch); team.barrier(of); }
        taken++;
        return in;
    };
    auto normalised = [&](const Matrix& y, const float* weight, const int64_t* which, int64_t count) {
        share(count, id, of, first, last);
        for (int64_t r = first; r < last; r++) norm(x + (which ? which[r] : r) * ldx, weight, m.eps, width, normed + r * width);
        prepare(y, normed, width, count, first, last, prepared);
        team.barrier(of);
        return ready(y, normed, width, count, true);
    };
    auto multiply = [&](const Matrix& y, const Input& in, int64_t count, float* out, int64_t ld, bool add) {
        deal(panels(y), 1, count, id, of, *taken++, [&](int64_t p, int64_t q, int64_t row, int64_t size) {
            product(y, p, q, row, size, in, out + row * ld + p * NR, ld, add, scratch);
            add_low(y, p, q, row, size, small, out + row * ld + p * NR, ld, scratch);
        });
    };
    share(N, id, of, first, last);
    for (int64_t r = first; r < last; r++) unpacked(m.embed, call.tokens[r], x + r * ldx);
    team.barrier(of);
    for (int64_t l = 0; l < m.layers; l++) {
        const Layer& y = m.layer[l];
        if (call.trace) {
            const Trace& t = call.trace[l];
            qkv = t.heads; mixed = t.mixed; gates = t.gates;
            share(N, id, of, first, last);
            std::memcpy(t.before + first * ldx, x + first * ldx, (last - first) * ldx * sizeof(float));
        }
        multiply(y.qkv, normalised(y.qkv, y.norm1, nullptr, N), N, qkv, ldq, false);
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
            for (int64_t k = 0; k < K; k++)
                m.cache.write(call.slots[r], at, l, k, D, qkv + r * ldq + (H + k) * D, qkv + r * ldq + (H + K + k) * D);
        }
        team.barrier(of);
        attend_tiles(call, l, id, of, qkv, mixed, own);
        team.barrier(of);
        if (id == 0) call.next[(l + 128) % 256] = 0;
        multiply(y.out, ready(y.out, mixed, ldm, N, false), N, x, ldx, true);
        team.barrier(of);
        if (call.trace) {
            share(N, id, of, first, last);
            std::memcpy(call.trace[l].middle + first * ldx, x + first * ldx, (last - first) * ldx * sizeof(float));
        }
        const Input in = normalised(y.gate_up, y.norm2, nullptr, N);
        deal(panels(y.gate_up), 2, N, id, of, *taken++, [&](int64_t p, int64_t q, int64_t row, int64_t size) {
            for (; p < q; p += 2) {            // gate and up of the same outputs
                float* both = call.trace ? gates + row * 2 * ldi + p * NR : scratch + SCRATCH;
                const int64_t ld = call.trace ? 2 * ldi : 2 * NR;
                product(y.gate_up, p, p + 2, row, size, in, both, ld, false, scratch);
                add_low(y.gate_up, p, p + 2, row, size, small, both, ld, scratch);
                for (int64_t r = 0; r < size; r++)
                    for (int c = 0; c < NR; c += W) {
                        const V g = load(both + r * ld + c), u = load(both + r * ld + NR + c);
                        store(act + (row + r) * ldi + p / 2 * NR + c, g / (1.0f + exp_(-g)) * u);
                    }
            }
        });
        team.barrier(of);
        multiply(y.down, ready(y.down, act, ldi, N, false), N, x, ldx, true);
        team.barrier(of);
    }
    if (call.after && id == 0) std::memcpy(call.after, x, N * ldx * sizeof(float));
    const Input read = normalised(m.top, m.norm, call.read, call.R);
    if (call.hidden && id == 0) std::memcpy(call.hidden, normed, call.R * width * sizeof(float));
    if (!call.logits) return;
    const int64_t ldv = padded(m.vocab);
    multiply(m.top, read, call.R, call.logits, ldv, false);
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
struct HeadCall { Model* m; int64_t R; const float* hidden; float* logits; std::atomic<int64_t> taken; };

void head(void* given, int id, int of) {
    HeadCall& call = *static_cast<HeadCall*>(given);
    const Matrix& top = call.m->top;
    const int64_t ldv = padded(call.m->vocab), width = call.m->width;
    float* scratch = call.m->own[id].data();
    int64_t first, last;
    share(call.R, id, of, first, last);
    prepare(top, call.hidden, width, call.R, first, last, call.m->prepared.data());
    pool().barrier(of);
    deal(panels(top), 1, call.R, id, of, call.taken, [&](int64_t p, int64_t q, int64_t row, int64_t size) {
        product(top, p, q, row, size, {call.hidden, width, call.m->prepared.data(), call.R}, call.logits + row * ldv + p * NR, ldv, false, scratch);
    });
}

// The stretches of tiles, if these are few and long: with one for each thread at most, some threads would wait for others.
std::vector<Part> parts(const std::vector<Tile>& tiles, const int64_t* positions, int64_t kv_heads, int threads) {
    std::vector<Part> found;
    if (threads == 1 || int64_t(tiles.size()) * kv_heads >= 4 * threads) return found;
    for (size_t i = 0; i < tiles.size(); i++)
        for (int64_t s = 0; s < stretches(positions[tiles[i].first] + tiles[i].count); s++) found.push_back({int64_t(i), s});
    if (found.size() == tiles.size()) found.clear();
    return found;
}

// Memory for N rows and for the threads.
void make_room(Model& m, int64_t N, int64_t R, int threads) {
    const int64_t most = N > R ? N : R;
    int64_t prepared = prepared_floats(m.top.kind, R, m.width), rank = 0;
    for (const Layer& y : m.layer)
        for (const Matrix* x : {&y.qkv, &y.out, &y.gate_up, &y.down}) {
            const int64_t size = prepared_floats(x->kind, N, x->ins);
            prepared = size > prepared ? size : prepared;
            rank = x->low.rank > rank ? x->low.rank : rank;
        }
    m.prepared.resize(prepared); m.small.resize(N * padded(rank)); m.normed.resize(most * m.width);
    if (int(m.own.size()) < threads) m.own.resize(threads);
    for (auto& own : m.own) own.resize(SCRATCH + 2 * ROWS * NR + attend_floats(m.head, m.heads / m.kv_heads));
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

// CPU seconds of one product of `rows` rows in a kind of matrix, measured with one thread.
double measured_seconds(int64_t kind, int64_t rows, int64_t outs, int64_t ins) { return product_seconds(kind, rows, outs, ins); }

int page_tokens() { return PAGE; }

// The cores that the pool's threads may run on; threads that exist stay where they are.
void pool_cores(const int* cores, int count) { pool().cores.assign(cores, cores + count); }

// ints: width heads kv_heads head inner vocab layers, pages a slot, all pages, numbers between a layer's pages, their format; pointers: embed norm cos sin, top, pages and their table, then per layer
// norm1 norm2 q_norm k_norm qkv out gate_up down, where a matrix (embed too) is: kind, data, scale, bias, and of the low-rank product beside
// it: rank (0: there is none), a, scale, b, places.
void* model_new(const int64_t* n, float eps, void** p) {
    Model* m = new Model{n[0], n[1], n[2], n[3], n[4], n[5], n[6], eps, {}, nullptr, nullptr, nullptr, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    auto next = [&] { return static_cast<float*>(*p++); };
    auto matrix = [&](int64_t outs, int64_t ins) {
        const int64_t kind = reinterpret_cast<int64_t>(*p++);
        const void* data = *p++;
        const float *scale = next(), *bias = next();
        Low low{reinterpret_cast<int64_t>(*p++), nullptr, nullptr, nullptr, nullptr};
        low.a = next(); low.scale = next(); low.b = next(); low.places = static_cast<int64_t*>(static_cast<void*>(next()));
        return Matrix{outs, ins, kind, data, scale, bias, low};
    };
    m->embed = matrix(m->vocab, m->width);
    m->norm = next(); m->cos = next(); m->sin = next();
    m->top = matrix(m->vocab, m->width);
    m->cache = {next(), reinterpret_cast<int32_t*>(next()), n[7], n[8], n[9], n[10], m->kv_heads, deep(m->head)};
    for (int64_t l = 0; l < m->layers; l++) {
        Layer y{};
        y.norm1 = next(); y.norm2 = next(); y.q_norm = next(); y.k_norm = next();
        y.qkv = matrix((m->heads + 2 * m->kv_heads) * m->head, m->width);
        y.out = matrix(m->width, m->heads * m->head);
        y.gate_up = matrix(2 * padded(m->inner), m->width);
        y.down = matrix(m->width, padded(m->inner));
        m->layer.push_back(y);
    }
    return m;
}

// Give memory that packing freed back to the system, which the allocator would keep.
void release_memory() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

void model_free(void* m) { delete static_cast<Model*>(m); }

// Read or say N tokens; of the rows `read` (R of them) give hidden states after the final norm and/or logits (rows of `vocab` rounded
// up to panels), each row's best token and the logsumexp of its logits.
void model_forward(void* model, int threads, int64_t N, const int64_t* tokens, const int64_t* slots, const int64_t* positions,
                   int64_t R, const int64_t* read, float* hidden, float* logits, int64_t* best, float* total, float* const* trace, float* after) {
    Model& m = *static_cast<Model*>(model);
    m.x.resize(N * padded(m.width)); m.act.resize(N * padded(m.inner));
    if (!trace) {
        m.qkv.resize(N * padded((m.heads + 2 * m.kv_heads) * m.head));
        m.mixed.resize(N * m.heads * m.head);
    }
    make_room(m, N, R, threads);
    Call call{&m, N, tokens, slots, positions, R, read, hidden, logits, total, best, reinterpret_cast<const Trace*>(trace), after,
              tiles(N, slots, positions, m.heads / m.kv_heads), {}, {}, std::vector<std::atomic<int64_t>>(8 * m.layers + 2)};
    call.parts = parts(call.tiles, positions, m.kv_heads, threads);
    if (!call.parts.empty())
        m.stretches.resize(call.parts.size() * m.kv_heads * mixed_floats(most_queries(m.heads / m.kv_heads), m.cache.depth) + 16);
    for (auto& counter : call.next) counter = 0;
    pool().run(forward, &call, threads);
}

// Logits (rows of `vocab` rounded up to panels) of R hidden states after the final norm.
void model_head(void* model, int threads, int64_t R, const float* hidden, float* logits) {
    make_room(*static_cast<Model*>(model), 0, R, threads);
    HeadCall call{static_cast<Model*>(model), R, hidden, logits, 0};
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


// A generator's state, of sizeof(Twister) bytes, for a seed; and the next n numbers of it.
int64_t twister_bytes() { return sizeof(Twister); }
void twister_seed(void* state, uint32_t value) { seed(*static_cast<Twister*>(state), value); }
void twister_uniforms(void* state, int64_t n, float* out) { uniforms(*static_cast<Twister*>(state), n, out); }

// One token of each of N rows of logits, `stride` floats apart; see DrawCall.
void draw_tokens(int threads, int64_t N, int64_t stride, int64_t vocab, const float* logits, const float* settings, void* twisters,
                 int64_t* tokens, int64_t* counts, void* kept) {
    DrawCall call{N, stride, vocab, logits, settings, static_cast<Twister* const*>(twisters), tokens, counts, static_cast<int32_t* const*>(kept)};
    pool().run(draw, &call, threads);
}

}
