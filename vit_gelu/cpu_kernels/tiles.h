// Products by the tile registers of AMX: a tile is 16 rows of 32 bfloat16 numbers (left), 16 rows of 16 pairs (right),
// or 16 × 16 float32 sums. All tiles here are whole; what is smaller is filled up with zeros beforehand.

#pragma once

#include "pairs.h"

namespace {

constexpr int64_t SIDE = 32, STEP = 32;  // a block: 2 × 2 tiles of sums; numbers that one instruction sums up

// The calling thread's tile registers have their shape as long as this lives.
struct Tiles {
    Tiles() {
        alignas(64) uint8_t config[64] = {1};
        for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
        _tile_loadconfig(config);
    }
    ~Tiles() { _tile_release(); }
};

// Memory that is needed next, asked for line by line between multiplications: many at once would block other loads.
struct Ahead {
    struct Rows {
        const bf16 *from;
        int64_t stride, columns, rows;
        int64_t lines() const { return over(columns, 32) * rows; }
    };
    Rows left[2];  // one after the other
    double each, owed = 0;  // lines per step
    int64_t column = 0;
    inline void step() {
        for (owed += each; owed >= 1; owed--) {
            if (left[0].rows <= 0) left[0] = left[1], left[1].rows = 0;
            if (left[0].rows <= 0) return;
            _mm_prefetch((const char *)(left[0].from + column), _MM_HINT_T1);
            column += 32;
            if (column >= left[0].columns) column = 0, left[0].from += left[0].stride, left[0].rows--;
        }
    }
};

// out (16·M, 16·N) = left·right, or += if ADD. left: rows of 32·steps numbers; right: rows of pairs; strides in numbers,
// pairs and floats.
template <int M, int N, bool ADD = false>
inline void block(const bf16 *left, int64_t stride, const uint32_t *right, int64_t width, int64_t steps, float *out, int64_t out_stride, Ahead *ahead = nullptr) {
    const int64_t bytes = 2 * stride, right_bytes = 4 * width, out_bytes = 4 * out_stride;
    float *below = out + 16 * out_stride;
    if (ADD) {
        _tile_loadd(0, out, out_bytes);
        if (N > 1) _tile_loadd(1, out + 16, out_bytes);
        if (M > 1) _tile_loadd(2, below, out_bytes);
        if (M > 1 && N > 1) _tile_loadd(3, below + 16, out_bytes);
    } else {
        _tile_zero(0);
        if (N > 1) _tile_zero(1);
        if (M > 1) _tile_zero(2);
        if (M > 1 && N > 1) _tile_zero(3);
    }
    for (int64_t k = 0; k < steps; k++, left += STEP, right += STEP / 2 * width) {
        if (ahead) ahead->step();
        _tile_loadd(4, left, bytes);
        _tile_loadd(6, right, right_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (N > 1) {
            _tile_loadd(7, right + 16, right_bytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (M > 1) {
            _tile_loadd(5, left + 16 * stride, bytes);
            _tile_dpbf16ps(2, 5, 6);
            if (N > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, out_bytes);
    if (N > 1) _tile_stored(1, out + 16, out_bytes);
    if (M > 1) _tile_stored(2, below, out_bytes);
    if (M > 1 && N > 1) _tile_stored(3, below + 16, out_bytes);
}

// out (16·m, 16·n) = left·right, m ≤ 2.
inline void blocks(const bf16 *left, int64_t stride, int64_t m, const uint32_t *right, int64_t width, int64_t n, int64_t steps, float *out, int64_t out_stride) {
    for (int64_t j = 0; j < n; j += 2, right += SIDE, out += SIDE) {
        if (m > 1)
            n - j > 1 ? block<2, 2>(left, stride, right, width, steps, out, out_stride) : block<2, 1>(left, stride, right, width, steps, out, out_stride);
        else
            n - j > 1 ? block<1, 2>(left, stride, right, width, steps, out, out_stride) : block<1, 1>(left, stride, right, width, steps, out, out_stride);
    }
}

}  // namespace
