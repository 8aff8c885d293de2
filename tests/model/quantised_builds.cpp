// Products in groups alone, for builds with fewer instructions than this CPU has: see test_quantised_builds.py.
#include "kernels/quantised.h"

extern "C" {

int panel_width() { return NR; }
int unsigned_bytes() { return UNSIGNED_BYTES; }

// out (N x panels of outputs) = rows x W^T.
void products(int64_t kind, int64_t ins, int64_t panels, int64_t N, const float* x, const void* w, float* out) {
    Floats memory(rounded_floats(N, ins));
    const Rounded rows = rounded_at(memory.data(), N, ins);
    round_rows(kind, x, ins, ins, rows, 0, N);
    quantised_product(kind, w, ins, nullptr, 0, panels, N, rows, out, panels * NR, false);
}

void matrix_row(int64_t kind, int64_t ins, int64_t index, const void* w, float* out) { quantised_row(kind, w, ins, index, out); }

}
