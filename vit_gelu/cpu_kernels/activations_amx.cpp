// Activations in one pass over memory, of bfloat16 or float32 numbers, evaluated in float32: x·F(z) with z = (x − μ)/σ for
// the distributions F of vit_gelu/activations/distributions.py; max(x, 0)²; max(x, 0) + slope·min(x, 0).

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

// exp(x) for x ≤ 0, relative error 2e-7. Where one argument of a maximum is NaN the second is the result.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(number(-104.0f), x);
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, number(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rough = _mm512_fnmadd_ps(whole, number(0.693145752f), x), f = _mm512_fnmadd_ps(whole, number(1.42860677e-6f), rough);
    __m512 p = number(1.98412698e-4f);  // 1/k!
    p = _mm512_fmadd_ps(p, f, number(1.38888889e-3f));
    p = _mm512_fmadd_ps(p, f, number(8.33333333e-3f));
    p = _mm512_fmadd_ps(p, f, number(4.16666667e-2f));
    p = _mm512_fmadd_ps(p, f, number(1.66666667e-1f));
    p = _mm512_fmadd_ps(p, f, number(0.5f));
    p = _mm512_fmadd_ps(p, f, number(1.0f));
    p = _mm512_fmadd_ps(p, f, number(1.0f));
    return _mm512_scalef_ps(p, whole);
}

struct Values {
    __m512 cdf, pdf;
};

// Φ(−u) = exp(−u²/2)·t·(c₀ + c₁t + …) with t = 1/(1 + pu), the form of Abramowitz & Stegun 26.2.17. Minimax fits of the
// relative error on [0, 14], exact at 0: of half_precision.py, 4.3e-6, and for float32, 1.6e-8.
constexpr float HALF_P = 0.3072691473502696f, FULL_P = 0.21f;
constexpr float HALF[] = {0.12284068366110794f, 0.11845280649178788f, 0.1370615869707613f, 0.005389538692819908f, 0.19180311948119955f, -0.0755477352976767f};
constexpr float FULL[] = {0.0837114472495922f, 0.08507108163274071f, 0.06917578952864215f, 0.1249397536532681f, -0.09409185289466443f, 0.3496589203929199f, -0.33049619964849103f, 0.28371582693819924f, -0.07168476685220693f};

template <int N>
inline Values normal(__m512 z, float slope, const float (&c)[N]) {
    const __m512 bell = exponential(_mm512_mul_ps(_mm512_mul_ps(z, z), number(-0.5f)));
    const __m512 t = inverse(_mm512_fmadd_ps(size(z), number(slope), number(1.0f)));
    __m512 p = number(c[N - 1]);
#pragma GCC unroll 8
    for (int k = N - 2; k >= 0; k--) p = _mm512_fmadd_ps(p, t, number(c[k]));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(bell, t), p);
    return {_mm512_mask_sub_ps(tail, positive(z), number(1.0f), tail), _mm512_mul_ps(bell, number(0.3989422804014327f))};
}

struct Normal {
    static inline Values at(__m512 z) { return normal(z, HALF_P, HALF); }
};

struct ExactNormal {
    static inline Values at(__m512 z) { return normal(z, FULL_P, FULL); }
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

struct Numbers {  // thirty-two of them
    __m512 low, high;
};

inline Numbers read(const bf16 *from, __mmask32 mask) {
    const __m512i both = _mm512_maskz_loadu_epi16(mask, from);
    return {widen(_mm512_castsi512_si256(both)), widen(_mm512_extracti64x4_epi64(both, 1))};
}

inline Numbers read(const float *from, __mmask32 mask) {
    return {_mm512_maskz_loadu_ps(mask & 0xffff, from), _mm512_maskz_loadu_ps(mask >> 16, from + 16)};
}

inline void write(bf16 *to, __mmask32 mask, Numbers x, bool far) { put(to, mask, (__m512i)_mm512_cvtne2ps_pbh(x.high, x.low), far); }

inline void write(float *to, __mmask32 mask, Numbers x, bool far) {
    if (far && mask == ~0u) {
        _mm512_stream_ps(to, x.low);
        _mm512_stream_ps(to + 16, x.high);
    } else {
        _mm512_mask_storeu_ps(to, mask & 0xffff, x.low);
        _mm512_mask_storeu_ps(to + 16, mask >> 16, x.high);
    }
}

template <typename T>
inline void ask(const T *from) {
    for (size_t line = 0; line < 32; line += 64 / sizeof(T)) _mm_prefetch((const char *)(from + AHEAD + line), _MM_HINT_T0);
}

// out = use(x), times grad if there is one.
template <typename T, typename Use>
void pass(const Use &use, const T *x, const T *grad, int64_t n, T *out, int threads) {
    const bool far = past_caches(out, n);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t start = 0; start < n; start += PIECE)
            for (int64_t i = start; i < least(n, start + PIECE); i += 32) {
                const __mmask32 mask = first32(n - i);
                ask(x + i);
                Numbers y = read(x + i, mask);
                y = {use(y.low), use(y.high)};
                if (grad) {
                    ask(grad + i);
                    const Numbers by = read(grad + i, mask);
                    y = {_mm512_mul_ps(y.low, by.low), _mm512_mul_ps(y.high, by.high)};
                }
                write(out + i, mask, y, far);
            }
        _mm_sfence();
    }
}

// The gradients of x·F((x − μ)/σ): for x in `out`; for μ and σ in `sums`, added up piece by piece in one order.
template <typename Distribution, typename T>
void gradients(float mu, float sigma, const T *x, const T *grad, int64_t n, T *out, float *sums, int threads) {
    static thread_local Scratch scratch;
    const bool far = past_caches(out, n);
    const int64_t pieces = over(n, PIECE);
    float *partial = reinterpret_cast<float *>(scratch.pairs(2 * pieces + 16));
    const __m512 centre = number(mu), scale = number(1.0f / sigma);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < pieces; k++) {
            __m512 by_mu = _mm512_setzero_ps(), by_sigma = _mm512_setzero_ps();
            const auto one = [&](__m512 x, __m512 grad) {
                const __m512 z = _mm512_mul_ps(_mm512_sub_ps(x, centre), scale);
                const Values v = Distribution::at(z);
                const __m512 dense = _mm512_mul_ps(x, v.pdf), part = _mm512_mul_ps(grad, _mm512_mul_ps(dense, scale));
                by_mu = _mm512_sub_ps(by_mu, part);
                by_sigma = _mm512_fnmadd_ps(part, z, by_sigma);
                return _mm512_mul_ps(_mm512_fmadd_ps(dense, scale, v.cdf), grad);
            };
            for (int64_t i = k * PIECE; i < least(n, (k + 1) * PIECE); i += 32) {
                const __mmask32 mask = first32(n - i);
                ask(x + i);
                ask(grad + i);
                const Numbers at = read(x + i, mask), by = read(grad + i, mask);
                write(out + i, mask, {one(at.low, by.low), one(at.high, by.high)}, far);
            }
            partial[2 * k] = _mm512_reduce_add_ps(by_mu);
            partial[2 * k + 1] = _mm512_reduce_add_ps(by_sigma);
        }
        _mm_sfence();
    }
    double total[2] = {0, 0};
    for (int64_t k = 0; k < 2 * pieces; k++) total[k % 2] += partial[k];
    sums[0] = static_cast<float>(total[0]), sums[1] = static_cast<float>(total[1]);
}

template <typename Distribution, typename T>
void product(float mu, float sigma, const T *x, const T *grad, int64_t n, T *out, float *sums, int threads) {
    if (sums)
        gradients<Distribution>(mu, sigma, x, grad, n, out, sums, threads);
    else if (grad)
        pass(Product<Distribution, true>(mu, sigma), x, grad, n, out, threads);
    else
        pass(Product<Distribution, false>(mu, sigma), x, grad, n, out, threads);
}

template <typename T, typename ItsNormal>
void any(int kind, float mu, float sigma, const T *x, const T *grad, int64_t n, T *out, float *sums, int threads) {
    switch (kind) {
        case 0: return product<ItsNormal>(mu, sigma, x, grad, n, out, sums, threads);
        case 1: return product<NormalTanh>(mu, sigma, x, grad, n, out, sums, threads);
        case 2: return product<Logistic>(mu, sigma, x, grad, n, out, sums, threads);
        case 3: return product<Laplace>(mu, sigma, x, grad, n, out, sums, threads);
        case 4: return product<Uniform>(mu, sigma, x, grad, n, out, sums, threads);
        case 5: return product<Mish>(mu, sigma, x, grad, n, out, sums, threads);
        case 6: return grad ? pass(Squared<true>(), x, grad, n, out, threads) : pass(Squared<false>(), x, grad, n, out, threads);
        default: return grad ? pass(Rectifier<true>(mu), x, grad, n, out, threads) : pass(Rectifier<false>(mu), x, grad, n, out, threads);
    }
}

}  // namespace

extern "C" {

// out (n) = the activation of x (n), or grad (n) times its derivative there, if grad is not null; `kind` as in
// activations.py; numbers of all three are float32 if `wide`, else bfloat16. sums, if not null: the gradients for mu and
// sigma, of a kind that has them.
void activation(int kind, int wide, float mu, float sigma, const void *x, const void *grad, int64_t n, void *out, float *sums, int threads) {
    if (wide)
        any<float, ExactNormal>(kind, mu, sigma, static_cast<const float *>(x), static_cast<const float *>(grad), n, static_cast<float *>(out), sums, threads);
    else
        any<bf16, Normal>(kind, mu, sigma, static_cast<const bf16 *>(x), static_cast<const bf16 *>(grad), n, static_cast<bf16 *>(out), sums, threads);
}
}
