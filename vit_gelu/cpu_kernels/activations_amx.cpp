// Activations of bfloat16 numbers in one pass over memory, evaluated in float32: x·F(z) with z = (x − μ)/σ for the
// distributions F of vit_gelu/activations/distributions.py, whose errors are those of
// vit_gelu/activations/half_precision.py or less; max(x, 0)²; and max(x, 0) + slope·min(x, 0).

#include "pairs.h"

namespace {

constexpr int64_t AHEAD = 1024;  // numbers to ask for in advance: the processor's own prefetching stops at each page
constexpr int64_t PIECE = 4096;  // numbers of a thread at a time

inline __m512 number(float x) { return _mm512_set1_ps(x); }
inline __m512 size(__m512 x) { return _mm512_abs_ps(x); }
inline __mmask16 positive(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ); }

// 1/x to some 2^-23; a division takes four times as long.
inline __m512 inverse(__m512 x) {
    const __m512 y = _mm512_rcp14_ps(x);
    return _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x, y, number(1.0f)), y);
}

// exp(x) for x ≤ 0. Where one argument of a maximum is NaN the second is the result.
inline __m512 exponential(__m512 x) { return power(_mm512_max_ps(number(-200.0f), _mm512_mul_ps(x, number(1.44269504f)))); }

struct Values {
    __m512 cdf, pdf;
};

struct Normal {  // Abramowitz & Stegun 26.2.17 with the coefficients of half_precision.py
    static inline Values at(__m512 z) {
        const __m512 bell = exponential(_mm512_mul_ps(_mm512_mul_ps(z, z), number(-0.5f)));
        const __m512 t = inverse(_mm512_fmadd_ps(size(z), number(0.3072691473502696f), number(1.0f)));
        __m512 p = number(-0.0755477352976767f);
        p = _mm512_fmadd_ps(p, t, number(0.19180311948119955f));
        p = _mm512_fmadd_ps(p, t, number(0.005389538692819908f));
        p = _mm512_fmadd_ps(p, t, number(0.1370615869707613f));
        p = _mm512_fmadd_ps(p, t, number(0.11845280649178788f));
        p = _mm512_fmadd_ps(p, t, number(0.12284068366110794f));
        const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(bell, t), p);
        return {_mm512_mask_sub_ps(tail, positive(z), number(1.0f), tail), _mm512_mul_ps(bell, number(0.3989422804014327f))};
    }
};

struct Logistic {
    static inline Values at(__m512 z) {
        const __m512 tail = exponential(_mm512_sub_ps(_mm512_setzero_ps(), size(z)));
        const __m512 share = inverse(_mm512_add_ps(tail, number(1.0f))), left = _mm512_mul_ps(tail, share);
        return {_mm512_mask_mov_ps(left, positive(z), share), _mm512_mul_ps(left, share)};
    }
};

struct NormalTanh {
    static inline Values at(__m512 z) {
        z = _mm512_max_ps(number(-25.0f), _mm512_min_ps(number(25.0f), z));
        const float scale = 1.5957691216057308f, cube = 0.044715f;
        const __m512 square = _mm512_mul_ps(z, z);
        Values v = Logistic::at(_mm512_mul_ps(z, _mm512_fmadd_ps(square, number(scale * cube), number(scale))));
        v.pdf = _mm512_mul_ps(v.pdf, _mm512_fmadd_ps(square, number(3.0f * scale * cube), number(scale)));
        return v;
    }
};

struct Laplace {
    static inline Values at(__m512 z) {
        const __m512 tail = _mm512_mul_ps(exponential(_mm512_sub_ps(_mm512_setzero_ps(), size(z))), number(0.5f));
        return {_mm512_mask_sub_ps(tail, positive(z), number(1.0f), tail), tail};
    }
};

struct Uniform {
    static inline Values at(__m512 z) {
        const __m512 share = _mm512_fmadd_ps(z, number(0.5f), number(0.5f));
        const __mmask16 inside = _mm512_cmp_ps_mask(size(z), number(1.0f), _CMP_LT_OQ);
        return {_mm512_max_ps(_mm512_setzero_ps(), _mm512_min_ps(number(1.0f), share)), _mm512_maskz_mov_ps(inside, number(0.5f))};
    }
};

struct Mish {
    static inline Values at(__m512 z) {
        z = _mm512_min_ps(number(40.0f), z);
        const __m512 up = exponential(_mm512_sub_ps(_mm512_setzero_ps(), size(z)));
        const __m512 w = _mm512_mask_mov_ps(up, positive(z), inverse(up));
        const __m512 p = _mm512_mul_ps(w, _mm512_add_ps(w, number(2.0f))), share = inverse(_mm512_add_ps(p, number(2.0f)));
        const __m512 half = _mm512_add_ps(share, share), rise = _mm512_mul_ps(w, _mm512_add_ps(w, number(1.0f)));
        return {_mm512_mul_ps(p, share), _mm512_mul_ps(_mm512_mul_ps(rise, half), half)};
    }
};

// What is computed for sixteen numbers: y, or its derivative.
template <typename Distribution, bool SLOPE>
struct Product {
    __m512 mu, scale;
    Product(float mu, float sigma) : mu(number(mu)), scale(number(1.0f / sigma)) {}
    inline __m512 operator()(__m512 x) const {
        const Values v = Distribution::at(_mm512_mul_ps(_mm512_sub_ps(x, mu), scale));
        return SLOPE ? _mm512_fmadd_ps(_mm512_mul_ps(x, v.pdf), scale, v.cdf) : _mm512_mul_ps(x, v.cdf);
    }
};

template <bool SLOPE>
struct Rectifier {
    __m512 slope;
    explicit Rectifier(float slope) : slope(number(slope)) {}
    inline __m512 operator()(__m512 x) const {
        if (SLOPE) return _mm512_mask_mov_ps(slope, positive(x), number(1.0f));
        return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LE_OQ), x, slope);
    }
};

template <bool SLOPE>
struct Squared {
    inline __m512 operator()(__m512 x) const {
        const __m512 above = _mm512_max_ps(_mm512_setzero_ps(), x);
        return SLOPE ? _mm512_add_ps(above, above) : _mm512_mul_ps(above, above);
    }
};

inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

// out = use(x), times grad if there is one.
template <typename Use>
void pass(const Use &use, const bf16 *x, const bf16 *grad, int64_t n, bf16 *out, int threads) {
    const bool far = past_caches(out, n);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n; start += PIECE)
          for (int64_t i = start; i < least(n, start + PIECE); i += 32) {
            const __mmask32 mask = first32(n - i);
            _mm_prefetch((const char *)(x + i + AHEAD), _MM_HINT_T0);
            if (grad) _mm_prefetch((const char *)(grad + i + AHEAD), _MM_HINT_T0);
            const __m512i both = _mm512_maskz_loadu_epi16(mask, x + i);
            __m512 low = use(widen(_mm512_castsi512_si256(both))), high = use(widen(_mm512_extracti64x4_epi64(both, 1)));
            if (grad) {
                const __m512i by = _mm512_maskz_loadu_epi16(mask, grad + i);
                low = _mm512_mul_ps(low, widen(_mm512_castsi512_si256(by)));
                high = _mm512_mul_ps(high, widen(_mm512_extracti64x4_epi64(by, 1)));
            }
            put(out + i, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low), far);
          }
        _mm_sfence();
    }
}

template <typename Distribution>
void product(float mu, float sigma, const bf16 *x, const bf16 *grad, int64_t n, bf16 *out, int threads) {
    if (grad)
        pass(Product<Distribution, true>(mu, sigma), x, grad, n, out, threads);
    else
        pass(Product<Distribution, false>(mu, sigma), x, grad, n, out, threads);
}

}  // namespace

extern "C" {

// out (n) = the activation of x (n), or grad (n) times its derivative there, if grad is not null; `kind` as in
// activations.py.
void activation(int kind, float mu, float sigma, const bf16 *x, const bf16 *grad, int64_t n, bf16 *out, int threads) {
    switch (kind) {
        case 0: return product<Normal>(mu, sigma, x, grad, n, out, threads);
        case 1: return product<NormalTanh>(mu, sigma, x, grad, n, out, threads);
        case 2: return product<Logistic>(mu, sigma, x, grad, n, out, threads);
        case 3: return product<Laplace>(mu, sigma, x, grad, n, out, threads);
        case 4: return product<Uniform>(mu, sigma, x, grad, n, out, threads);
        case 5: return product<Mish>(mu, sigma, x, grad, n, out, threads);
        case 6: return grad ? pass(Squared<true>(), x, grad, n, out, threads) : pass(Squared<false>(), x, grad, n, out, threads);
        default: return grad ? pass(Rectifier<true>(mu), x, grad, n, out, threads) : pass(Rectifier<false>(mu), x, grad, n, out, threads);
    }
}
}
