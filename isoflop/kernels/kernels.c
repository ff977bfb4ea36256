/* What a training step does between its matrix products, on a CPU: each function reads and writes its rows once, where a
 * chain of tensor operations would pass over memory several times.
 *
 * Every function exists for float and for bfloat16 (the type NUMBER below); sums, exponentials and the residual stream
 * are in float in both. Rows are independent of each other, so that results do not depend on the number of threads. All
 * arrays are contiguous; the caller (calls.py) checks types and shapes.
 * The second half of the file is compiled twice, by including the file in itself. */

#ifndef NUMBER

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shared.h"

#define EACH_ROW _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")

/* cap tanh(x / cap), by tanh(x) = 1 - 2 / (exp(2 x) + 1). */
static inline float capped(float x, float cap) { return cap - 2.0f * cap / (exponential(x * (2.0f / cap)) + 1.0f); }

static inline float widen_float(float x) { return x; }
static inline float narrow_float(float x) { return x; }
static inline float widen_bfloat16(uint16_t x)
{
    union { uint32_t bits; float value; } wide = {.bits = (uint32_t)x << 16};
    return wide.value;
}

/* Rounds to nearest, ties to even. */
static inline uint16_t narrow_bfloat16(float x)
{
    union { float value; uint32_t bits; } wide = {.value = x};
    uint32_t rounded = wide.bits + 0x7fffu + ((wide.bits >> 16) & 1u);
    return x != x ? 0x7fc0u : (uint16_t)(rounded >> 16);
}

#define NUMBER float
#define NAMED(name) name##_float32
#define WIDE widen_float
#define NARROW narrow_float
#include "kernels.c"
#undef NUMBER
#undef NAMED
#undef WIDE
#undef NARROW

#define NUMBER uint16_t
#define NAMED(name) name##_bfloat16
#define WIDE widen_bfloat16
#define NARROW narrow_bfloat16
#include "kernels.c"

#else

/* RMS norm: y = r s with r = 1 / sqrt(mean(s^2) + eps), where s = x, or x + added, which is then written to `sum`. */
void NAMED(norm)(const float *x, const NUMBER *added, float *sum, NUMBER *y, float *r, long rows, long width, float eps,
                 int threads)
{
    EACH_ROW
    for (long i = 0; i < rows; i++) {
        const float *restrict row = x + i * width;
        if (added) {
            const NUMBER *restrict more = added + i * width;
            float *restrict both = sum + i * width;
            for (long j = 0; j < width; j++) both[j] = row[j] + WIDE(more[j]);
            row = both;
        }
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (long j = 0; j < width; j++) squares += row[j] * row[j];
        const float scale = 1.0f / sqrtf(squares / width + eps);
        NUMBER *restrict out = y + i * width;
        for (long j = 0; j < width; j++) out[j] = NARROW(row[j] * scale);
        r[i] = scale;
    }
}

/* dx = above + r (dy - y mean(dy y)), the gradient of `norm` added to that of the residual stream; also in the narrow
 * type if `copy` is not null. Without `above` nothing is added. */
void NAMED(norm_back)(const float *above, const NUMBER *dy, const NUMBER *y, const float *r, float *dx, NUMBER *copy,
                      long rows, long width, int threads)
{
    EACH_ROW
    for (long i = 0; i < rows; i++) {
        const NUMBER *restrict grad = dy + i * width, *restrict unit = y + i * width;
        float *restrict out = dx + i * width;
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (long j = 0; j < width; j++) dot += WIDE(grad[j]) * WIDE(unit[j]);
        dot /= width;
        const float scale = r[i];
        const float *restrict more = above ? above + i * width : NULL;
        for (long j = 0; j < width; j++)
            out[j] = (more ? more[j] : 0.0f) + scale * (WIDE(grad[j]) - WIDE(unit[j]) * dot);
        if (copy) {
            NUMBER *restrict narrow = copy + i * width;
            for (long j = 0; j < width; j++) narrow[j] = NARROW(out[j]);
        }
    }
}

/* total += more. */
void NAMED(add)(float *restrict total, const NUMBER *restrict more, long count, int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads) if (parallel : threads > 1)
    for (long i = 0; i < count; i++) total[i] += WIDE(more[i]);
}

/* u = max(u, 0)^2. */
void NAMED(relu2)(NUMBER *restrict u, long count, int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads) if (parallel : threads > 1)
    for (long i = 0; i < count; i++) {
        float x = WIDE(u[i]);
        x = x < 0.0f ? 0.0f : x; /* keeps NaN */
        u[i] = NARROW(x * x);
    }
}

/* grad = 2 grad sqrt(h), the gradient of h = max(u, 0)^2. */
void NAMED(relu2_back)(NUMBER *restrict grad, const NUMBER *restrict h, long count, int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads) if (parallel : threads > 1)
    for (long i = 0; i < count; i++) grad[i] = NARROW(2.0f * WIDE(grad[i]) * sqrtf(WIDE(h[i])));
}

/* One head of a query or key: RMS norm without a gain, then rotary positions in halves; the sines' first half is
 * negative, as in blocks/position.py. */
static inline float NAMED(turn)(const NUMBER *restrict x, NUMBER *restrict y, const float *restrict cosine,
                                const float *restrict sine, long width, float eps)
{
    const long half = width / 2;
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (long j = 0; j < width; j++) squares += WIDE(x[j]) * WIDE(x[j]);
    const float scale = 1.0f / sqrtf(squares / width + eps);
    for (long j = 0; j < half; j++) {
        const float a = WIDE(x[j]) * scale, b = WIDE(x[j + half]) * scale;
        y[j] = NARROW(a * cosine[j] + b * sine[j]);
        y[j + half] = NARROW(b * cosine[j + half] + a * sine[j + half]);
    }
    return scale;
}

/* The gradient of `turn` with respect to x, from its result y and its scale. A rotation keeps dot products. */
static inline void NAMED(turn_back)(const NUMBER *restrict dy, const NUMBER *restrict y, NUMBER *restrict dx,
                                    const float *restrict cosine, const float *restrict sine, long width, float scale)
{
    const long half = width / 2;
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (long j = 0; j < width; j++) dot += WIDE(dy[j]) * WIDE(y[j]);
    dot /= width;
    for (long j = 0; j < half; j++) {
        const float a = WIDE(dy[j]) - WIDE(y[j]) * dot, b = WIDE(dy[j + half]) - WIDE(y[j + half]) * dot;
        dx[j] = NARROW(scale * (a * cosine[j] + b * sine[j + half]));
        dx[j + half] = NARROW(scale * (b * cosine[j + half] + a * sine[j]));
    }
}

/* Queries, keys and values of (batch, length) tokens, split into heads: q (batch, heads, length, width), k and v with
 * `groups` heads, from qkv (batch, length, (heads + 2 groups) width). Queries and keys are normalised and rotated.
 * With `table`, (batch, length, groups width), gate * table is added to the values; gate (batch, length, groups) or
 * null, which is 1. */
void NAMED(heads)(const NUMBER *qkv, const float *cosines, const float *sines, const float *table, const float *gate,
                  NUMBER *q, NUMBER *k, NUMBER *v, float *rq, float *rk, long batch, long length, long heads,
                  long groups, long width, float eps, int threads)
{
    EACH_ROW
    for (long n = 0; n < batch * length; n++) {
        const long b = n / length, t = n % length;
        const NUMBER *x = qkv + n * (heads + 2 * groups) * width;
        const float *cosine = cosines + t * width, *sine = sines + t * width;
        for (long h = 0; h < heads; h++)
            rq[n * heads + h] =
                NAMED(turn)(x + h * width, q + ((b * heads + h) * length + t) * width, cosine, sine, width, eps);
        x += heads * width;
        for (long g = 0; g < groups; g++)
            rk[n * groups + g] =
                NAMED(turn)(x + g * width, k + ((b * groups + g) * length + t) * width, cosine, sine, width, eps);
        x += groups * width;
        for (long g = 0; g < groups; g++) {
            NUMBER *restrict value = v + ((b * groups + g) * length + t) * width;
            const NUMBER *restrict own = x + g * width;
            if (table) {
                const float *restrict row = table + (n * groups + g) * width;
                const float weight = gate ? gate[n * groups + g] : 1.0f;
                for (long j = 0; j < width; j++) value[j] = NARROW(WIDE(own[j]) + weight * row[j]);
            } else {
                memcpy(value, own, width * sizeof(NUMBER));
            }
        }
    }
}

/* The gradient of `heads` with respect to qkv, table and gate. */
void NAMED(heads_back)(const NUMBER *dq, const NUMBER *dk, const NUMBER *dv, const NUMBER *q, const NUMBER *k,
                       const float *rq, const float *rk, const float *cosines, const float *sines, const float *table,
                       const float *gate, NUMBER *dqkv, float *dtable, float *dgate, long batch, long length,
                       long heads, long groups, long width, int threads)
{
    EACH_ROW
    for (long n = 0; n < batch * length; n++) {
        const long b = n / length, t = n % length;
        NUMBER *dx = dqkv + n * (heads + 2 * groups) * width;
        const float *cosine = cosines + t * width, *sine = sines + t * width;
        for (long h = 0; h < heads; h++) {
            const long at = ((b * heads + h) * length + t) * width;
            NAMED(turn_back)(dq + at, q + at, dx + h * width, cosine, sine, width, rq[n * heads + h]);
        }
        dx += heads * width;
        for (long g = 0; g < groups; g++) {
            const long at = ((b * groups + g) * length + t) * width;
            NAMED(turn_back)(dk + at, k + at, dx + g * width, cosine, sine, width, rk[n * groups + g]);
        }
        dx += groups * width;
        for (long g = 0; g < groups; g++) {
            const NUMBER *restrict grad = dv + ((b * groups + g) * length + t) * width;
            memcpy(dx + g * width, grad, width * sizeof(NUMBER));
            if (!table) continue;
            const float *restrict row = table + (n * groups + g) * width;
            float *restrict drow = dtable + (n * groups + g) * width;
            const float weight = gate ? gate[n * groups + g] : 1.0f;
            float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (long j = 0; j < width; j++) {
                const float d = WIDE(grad[j]);
                dot += d * row[j];
                drow[j] = weight * d;
            }
            if (gate) dgate[n * groups + g] = dot;
        }
    }
}

/* Causal softmax of scale * scores, in place: row i holds the scores of query i % queries, the last of which sees all
 * `keys` keys, at most the last `window` (0: all). Unseen keys get 0. Returns 0, or 1 without memory. */
int NAMED(softmax)(NUMBER *scores, long rows, long queries, long keys, long window, float scale, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *restrict wide = malloc(keys * sizeof(float));
        if (!wide) failed = 1;
#pragma omp for schedule(static)
        for (long i = 0; i < rows; i++) {
            if (!wide) continue;
            NUMBER *restrict row = scores + i * keys;
            const long end = keys - queries + i % queries + 1, first = window && end > window ? end - window : 0;
            float largest = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : largest)
            for (long j = first; j < end; j++) {
                wide[j] = WIDE(row[j]);
                largest = largest < wide[j] ? wide[j] : largest;
            }
#pragma omp simd reduction(+ : total)
            for (long j = first; j < end; j++) {
                wide[j] = exponential(scale * (wide[j] - largest));
                total += wide[j];
            }
            const float share = 1.0f / total;
            memset(row, 0, first * sizeof(NUMBER));
            for (long j = first; j < end; j++) row[j] = NARROW(wide[j] * share);
            memset(row + end, 0, (keys - end) * sizeof(NUMBER));
        }
        free(wide);
    }
    return failed;
}

/* grad = scale * p (grad - sum(grad p)), the gradient of `softmax` with respect to the scores, from its result p. */
void NAMED(softmax_back)(NUMBER *grad, const NUMBER *p, long rows, long queries, long keys, long window, float scale,
                         int threads)
{
    EACH_ROW
    for (long i = 0; i < rows; i++) {
        NUMBER *restrict d = grad + i * keys;
        const NUMBER *restrict share = p + i * keys;
        const long end = keys - queries + i % queries + 1, first = window && end > window ? end - window : 0;
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (long j = first; j < end; j++) dot += WIDE(d[j]) * WIDE(share[j]);
        memset(d, 0, first * sizeof(NUMBER));
        for (long j = first; j < end; j++) d[j] = NARROW(scale * WIDE(share[j]) * (WIDE(d[j]) - dot));
        memset(d + end, 0, (keys - end) * sizeof(NUMBER));
    }
}

/* centred = keys - their mean over the positions, per head. A softmax over the keys does not depend on that mean, and
 * scores without it are smaller when they are rounded. Returns 0, or 1 without memory. */
int NAMED(centre)(const NUMBER *keys, NUMBER *centred, long heads, long length, long width, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *restrict mean = malloc(width * sizeof(float));
        if (!mean) failed = 1;
#pragma omp for schedule(static)
        for (long a = 0; a < heads; a++) {
            if (!mean) continue;
            const NUMBER *all = keys + a * length * width;
            memset(mean, 0, width * sizeof(float));
            for (long t = 0; t < length; t++) {
                const NUMBER *restrict key = all + t * width;
                for (long j = 0; j < width; j++) mean[j] += WIDE(key[j]);
            }
            for (long j = 0; j < width; j++) mean[j] /= length;
            for (long t = 0; t < length; t++) {
                const NUMBER *restrict key = all + t * width;
                NUMBER *restrict out = centred + (a * length + t) * width;
                for (long j = 0; j < width; j++) out[j] = NARROW(WIDE(key[j]) - mean[j]);
            }
        }
        free(mean);
    }
    return failed;
}

/* Cross-entropy of rows of logits, each with its target: losses[i] = -(1 - e) ln p(target) - e mean(ln p) + z (ln Z)^2,
 * with smoothing e and logits s replaced by cap tanh(s / cap) unless cap is 0. If `wanted`, the gradient of the sum of
 * all losses is written over the logits. A row with a negative target counts nothing. Returns 0, or 1 without memory.
 */
int NAMED(cross_entropy)(NUMBER *logits, const int64_t *targets, float *losses, long rows, long vocabulary,
                         float smoothing, float z, float cap, int wanted, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *restrict score = malloc(vocabulary * sizeof(float));
        float *restrict weight = malloc(vocabulary * sizeof(float));
        if (!score || !weight) failed = 1;
#pragma omp for schedule(static)
        for (long i = 0; i < rows; i++) {
            NUMBER *restrict row = logits + i * vocabulary;
            const int64_t target = targets[i];
            losses[i] = 0.0f;
            if (target < 0) memset(row, 0, vocabulary * sizeof(NUMBER));
            if (target < 0 || !score || !weight) continue;

            float largest = -INFINITY, total = 0.0f, sum = 0.0f;
#pragma omp simd reduction(max : largest)
            for (long j = 0; j < vocabulary; j++) {
                score[j] = WIDE(row[j]);
                largest = largest < score[j] ? score[j] : largest;
            }
            if (cap != 0.0f) { /* it keeps the order of scores */
                for (long j = 0; j < vocabulary; j++) score[j] = capped(score[j], cap);
                largest = capped(largest, cap);
            }
#pragma omp simd reduction(+ : total)
            for (long j = 0; j < vocabulary; j++) {
                weight[j] = exponential(score[j] - largest);
                total += weight[j];
            }
            const float log_z = largest + logf(total);
            losses[i] = log_z - (1.0f - smoothing) * score[target] + z * log_z * log_z;
            if (smoothing != 0.0f) {
#pragma omp simd reduction(+ : sum)
                for (long j = 0; j < vocabulary; j++) sum += score[j];
                losses[i] -= smoothing * (sum / vocabulary);
            }
            if (!wanted) continue;

            const float share = (1.0f + 2.0f * z * log_z) / total, even = smoothing / vocabulary;
            float at_target = weight[target] * share - even - (1.0f - smoothing);
            if (cap != 0.0f) { /* d cap tanh(s / cap) / d s = 1 - tanh^2 */
                const float inverse = 1.0f / (cap * cap);
                at_target *= 1.0f - score[target] * score[target] * inverse;
                for (long j = 0; j < vocabulary; j++)
                    row[j] = NARROW((weight[j] * share - even) * (1.0f - score[j] * score[j] * inverse));
            } else {
                for (long j = 0; j < vocabulary; j++) row[j] = NARROW(weight[j] * share - even);
            }
            row[target] = NARROW(at_target);
        }
        free(score);
        free(weight);
    }
    return failed;
}

#endif
