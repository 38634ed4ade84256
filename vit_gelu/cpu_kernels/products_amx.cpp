// Products of bfloat16 matrices, summed in float32, by the tiles of AMX (Sapphire Rapids and later).

#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.h"

namespace {

constexpr int64_t CHUNK = 64;            // rows of a product at a time: with a panel, they stay in the first-level cache
constexpr int64_t DEPTH = 128;           // rows per pass of a weight gradient
constexpr int64_t LINE = 16;             // pairs in a cache line; one more per panel keeps panels out of each other's sets
constexpr int64_t TALL = DEPTH + STEP;   // numbers from one row of a turned matrix to the next
constexpr int64_t WIDE = SIDE * DEPTH / 2 + LINE;  // pairs of a panel
constexpr int64_t TALLEST = 768, LARGEST = 768 * 256;  // rows and numbers of a weight gradient in the second-level cache
constexpr int64_t HALVES = 2;            // of all rows are summed up for themselves, whatever the number of threads

// A panel of 32 columns of the right matrix, (depth, columns) or `turned` (columns, depth), as rows of pairs.
void pack_panel(const bf16 *from, int64_t depth, int64_t columns, bool turned, int64_t panel, uint32_t *to) {
    for (int64_t half = 0; half < SIDE; half += 16) {
        const int64_t c = panel * SIDE + half;
        const __mmask16 mask = first16(columns - c);
        for (int64_t k = 0; k < depth; k += STEP) {
            __m512i x[16];
            for (int64_t i = 0; i < 16; i++) {
                const int64_t row = k + 2 * i;
                const bf16 *place = from + row * columns + c;
                if (turned)
                    x[i] = _mm512_maskz_loadu_epi16(c + i < columns ? first32(depth - k) : 0, from + (c + i) * depth + k);
                else
                    x[i] = pairs_of_rows(place, place + columns, row < depth ? mask : 0, row + 1 < depth ? mask : 0);
            }
            if (turned) transpose(x);
            for (int64_t i = 0; i < 16; i++) _mm512_store_si512(to + (k / 2 + i) * SIDE + half, x[i]);
        }
    }
}

// A block of sums, plus bias, to bfloat16.
inline void finish(const float *sums, int64_t rows, int64_t columns, const float *bias, bf16 *out, int64_t stride, bool far) {
    const __mmask32 mask = first32(columns);
    const __mmask16 second = first16(columns - 16);
    const __m512 low = bias ? _mm512_maskz_loadu_ps(first16(columns), bias) : _mm512_setzero_ps();
    const __m512 high = bias && second ? _mm512_maskz_loadu_ps(second, bias + 16) : _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; i++, sums += SIDE, out += stride) {
        const __m512 left = _mm512_add_ps(_mm512_load_ps(sums), low), right = _mm512_add_ps(_mm512_load_ps(sums + 16), high);
        put(out, mask, (__m512i)_mm512_cvtne2ps_pbh(right, left), far);
    }
}

// Rows of x by all packed panels, plus bias, to bfloat16.
void chunk_product(const bf16 *x, int64_t rows, int64_t depth, const uint32_t *packed, int64_t size, int64_t columns, const float *bias, bf16 *out, int64_t coming, bool far) {
    const bf16 *next = x + rows * depth;
    static thread_local Scratch scratch;
    alignas(64) float sums[2][SIDE * SIDE];
    const int64_t steps = over(depth, STEP);
    int64_t stride = depth;
    if (depth % STEP || rows % SIDE) {
        stride = steps * STEP;
        bf16 *filled = reinterpret_cast<bf16 *>(scratch.pairs(CHUNK * stride / 2));
        memset(filled, 0, whole(rows, SIDE) * stride * sizeof(bf16));
        for (int64_t r = 0; r < rows; r++) memcpy(filled + r * stride, x + r * depth, depth * sizeof(bf16));
        x = filled;
    }
    // Tiles of the next block are multiplied while the sums of this one are rounded: two buffers.
    const int64_t tall = over(rows, SIDE), all = tall * over(columns, SIDE);
    Ahead ahead{{{next, coming * depth, coming * depth, coming > 0}}, coming * depth / 32.0 / (all * steps)};
    for (int64_t t = 0; t <= all; t++) {
        if (t < all) block<2, 2>(x + t % tall * SIDE * stride, stride, packed + t / tall * size, SIDE, steps, sums[t % 2], SIDE, &ahead);
        if (t) {
            const int64_t r = (t - 1) % tall * SIDE, c = (t - 1) / tall * SIDE;
            finish(sums[(t - 1) % 2], least(SIDE, rows - r), columns - c, bias ? bias + c : nullptr, out + r * columns + c, columns, far);
        }
    }
}

// Up to DEPTH rows, turned: rows of TALL numbers, one per column; their sums are added to `sums`, unless that is null.
void pack_turned(const bf16 *from, int64_t stride, int64_t rows, int64_t columns, bf16 *to, float *sums, Ahead *ahead) {
    const __m512i upper = _mm512_set1_epi32(0xffff0000);
    for (int64_t c = 0; c < columns; c += 32) {
        const __mmask32 mask = first32(columns - c);
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t k = 0; k < rows; k += STEP) {
            __m512i x[2][16];
            ahead->step();
            ahead->step();
            for (int64_t i = 0; i < 16; i++) {
                const int64_t r = k + 2 * i;
                const bf16 *row = from + least(r, rows - 1) * stride + c;
                interleave(row, r + 1 < rows ? row + stride : row, r < rows ? mask : 0, r + 1 < rows ? mask : 0, &x[0][i], &x[1][i]);
                for (int h = 0; h < 2; h++) {
                    sum[h] = _mm512_add_ps(sum[h], _mm512_castsi512_ps(_mm512_slli_epi32(x[h][i], 16)));
                    sum[h] = _mm512_add_ps(sum[h], _mm512_castsi512_ps(_mm512_and_si512(x[h][i], upper)));
                }
            }
            for (int64_t h = 0; h < 2; h++) {
                transpose(x[h]);
                for (int64_t i = 0; i < 16; i++) _mm512_store_si512(to + (c + 16 * h + i) * TALL + k, x[h][i]);
            }
        }
        for (int64_t h = 0; sums && h < 2; h++) {
            const __mmask16 half = first16(columns - c - 16 * h);
            float *place = sums + c + 16 * h;
            if (half) _mm512_mask_storeu_ps(place, half, _mm512_add_ps(_mm512_maskz_loadu_ps(half, place), sum[h]));
        }
    }
}

// Up to DEPTH rows as panels of 32 columns.
void pack_panels(const bf16 *from, int64_t stride, int64_t rows, int64_t columns, uint32_t *to) {
    for (int64_t c = 0; c < columns; c += SIDE, to += WIDE)
        for (int64_t r = 0; r < whole(rows, STEP); r += 2) {
            const bf16 *row = from + least(r, rows - 1) * stride + c;
            const __mmask32 mask = first32(columns - c);
            __m512i low, high;
            interleave(row, r + 1 < rows ? row + stride : row, r < rows ? mask : 0, r + 1 < rows ? mask : 0, &low, &high);
            _mm512_store_si512(to + r / 2 * SIDE, low);
            _mm512_store_si512(to + r / 2 * SIDE + 16, high);
        }
}

// Columns m of dy by columns n of x: one thread's part of a weight gradient.
void gradient_part(const bf16 *dy, int64_t stride_dy, const bf16 *x, int64_t stride_x, int64_t rows, int64_t m, int64_t n, float *dw, float *db) {
    static thread_local Scratch scratch;
    const int64_t tall = whole(m, SIDE), broad = over(n, SIDE), one = SIDE * SIDE;
    uint32_t *right = scratch.pairs(broad * WIDE + tall * TALL / 2 + tall * broad * SIDE);
    bf16 *left = reinterpret_cast<bf16 *>(right + broad * WIDE);
    float *sums = reinterpret_cast<float *>(left + tall * TALL);
    if (db) memset(db, 0, m * sizeof(float));
    for (int64_t r = 0; r < rows; r += DEPTH) {
        const int64_t depth = least(DEPTH, rows - r), steps = over(depth, STEP), next = r + depth, coming = least(DEPTH, rows - next);
        const int64_t tiles = tall / SIDE * broad;
        Ahead ahead{{{dy + next * stride_dy, stride_dy, m, coming}, {x + next * stride_x, stride_x, n, coming}}, 0};
        ahead.each = double(ahead.left[0].lines() + ahead.left[1].lines()) / (steps * (tiles + 2 * tall / SIDE));
        pack_turned(dy + r * stride_dy, stride_dy, depth, m, left, db, &ahead);
        pack_panels(x + r * stride_x, stride_x, depth, n, right);
        int64_t t = 0;
        for (int64_t j = 0; j < broad; j++)
            for (int64_t i = 0; i < tall; i += SIDE, t++) {
                if (r)
                    block<2, 2, true>(left + i * TALL, TALL, right + j * WIDE, SIDE, steps, sums + t * one, SIDE, &ahead);
                else
                    block<2, 2>(left + i * TALL, TALL, right + j * WIDE, SIDE, steps, sums + t * one, SIDE, &ahead);
            }
    }
    for (int64_t j = 0; j < n; j += SIDE)
        for (int64_t i = 0; i < tall; i++, sums += SIDE)
            for (int64_t h = 0; h < SIDE && i < m; h += 16) {
                const __mmask16 mask = first16(n - j - h);
                if (mask) _mm512_mask_storeu_ps(dw + i * stride_x + j + h, mask, _mm512_load_ps(sums + h));
            }
}

}  // namespace

extern "C" {

// Asks the kernel of the operating system for the tile registers, once per process; 0 if it grants them.
int prepare() { return static_cast<int>(syscall(SYS_arch_prctl, 0x1023, 18)); }

// dw (out, in) = dyᵀ·x and db (out) = sums of dy's columns, in float32, from dy (rows, out) and x (rows, in).
void weight_gradient(const bf16 *dy, const bf16 *x, int64_t rows, int64_t out, int64_t in, float *dw, float *db, int threads) {
    static thread_local Scratch scratch;
    // For each half a grid of parts: every thread packs its columns of both matrices, and those of dy at a higher price.
    const int64_t half = whole(over(rows, HALVES), DEPTH), halves = over(rows, half), each = over(threads, halves);
    int64_t m = 0, n = 0;
    double best = 0;
    for (int64_t a = 1; a <= each; a++) {
        const int64_t tall = whole(over(out, a), SIDE), broad = whole(over(in, over(each, a)), SIDE);
        const double cost = double(tall) * broad + 128.0 * tall + 32.0 * broad;
        if (a == 1 || cost < best) best = cost, m = tall, n = broad;
    }
    m = whole(over(m, over(m, TALLEST)), SIDE);
    n = whole(over(n, over(n, LARGEST / m)), SIDE);
    const int64_t across = over(in, n), parts = over(out, m) * across, size = out * in;
    float *other = reinterpret_cast<float *>(scratch.pairs(size + out));
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < halves * parts; p++) {
            const int64_t i = p % parts / across * m, j = p % across * n, start = p / parts * half;
            float *weights = start ? other : dw, *bias = start ? other + size : db;
            gradient_part(dy + start * out + i, out, x + start * in + j, in, least(half, rows - start), least(m, out - i), least(n, in - j), weights + i * in + j, j ? nullptr : bias + i);
        }
        if (halves > 1) {
#pragma omp for schedule(static) nowait
            for (int64_t k = 0; k < size; k++) dw[k] += other[k];
#pragma omp for schedule(static)
            for (int64_t k = 0; k < out; k++) db[k] += other[size + k];
        }
    }
}

// out (rows, columns) = x·wᵀ with w (columns, depth) if `turned`, else x·w with w (depth, columns).
// bias (columns), added before rounding, may be null.
void product(const bf16 *x, const bf16 *w, const float *bias, int64_t rows, int64_t depth, int64_t columns, int turned, bf16 *out, int threads) {
    static thread_local Scratch scratch;
    const int64_t panels = over(columns, SIDE), size = whole(depth, STEP) / 2 * SIDE + LINE;
    uint32_t *packed = scratch.pairs(panels * size);
    const int64_t chunk = rows >= 4 * CHUNK * threads ? CHUNK : SIDE, chunks = over(rows, chunk);
    const bool far = columns % SIDE == 0 && past_caches(out, rows * columns);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) pack_panel(w, depth, columns, turned, p, packed + p * size);
#pragma omp for schedule(static) nowait
        for (int64_t q = 0; q < chunks; q++)
            chunk_product(x + q * chunk * depth, least(chunk, rows - q * chunk), depth, packed, size, columns, bias, out + q * chunk * columns, least(chunk, rows - (q + 1) * chunk), far);
        _mm_sfence();
    }
}
}
