/* What kernels.c, decode.c and sample.c share. */

#ifndef SHARED_H
#define SHARED_H

#include <math.h>
#include <stdint.h>

/* exp(x) to about two units in the last place (the polynomial of Cephes); below -87 it stays at exp(-87), 1.6e-38. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504088896341f);
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    union { uint32_t bits; float value; } power = {.bits = ((uint32_t)(int32_t)n + 127u) << 23};
    return y * power.value;
}

#endif
