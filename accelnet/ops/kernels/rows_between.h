// Layers of few operations that stand before, between and behind the products of a chain.
#pragma once

#include <limits>

#include "product.h"
#include "views.h"

namespace accelnet {

// Numbers that a task reads.
constexpr int64_t kBlock = 16384;

// Calls function(begin, end) for parts of `count` rows of `width` numbers on all threads.
template <typename Pool, typename F>
void over_rows(Pool& pool, int64_t count, int64_t width, const F& function) {
  const int64_t rows = std::max<int64_t>(1, kBlock / width);
  share_out(pool, 4 * count * width, ceil_div(count, rows),
            [&](int64_t task) { function(task * rows, std::min(count, (task + 1) * rows)); });
}

// Calls function(pointer of the array's type).
template <typename F>
void with_type(const View& view, const F& function) {
  switch (view.type) {
    case ffi::PRED:
    case ffi::U8: return function(static_cast<const uint8_t*>(view.data));
    case ffi::S8: return function(static_cast<const int8_t*>(view.data));
    case ffi::U16: return function(static_cast<const uint16_t*>(view.data));
    case ffi::S16: return function(static_cast<const int16_t*>(view.data));
    case ffi::S32: return function(static_cast<const int32_t*>(view.data));
    default: return function(static_cast<const float*>(view.data));
  }
}

// out = (in - shift) * scale, of rows of `width` numbers.
template <typename Pool>
void standardize(Pool& pool, const View& in, int64_t count, int64_t width, const float* shift, const float* scale,
                 float* out) {
  with_type(in, [&](auto* from) {
    over_rows(pool, count, width, [&](int64_t begin, int64_t end) {
      if (width == 1) {
        const float by = *scale, less = *shift;
        for (int64_t i = begin; i < end; ++i) out[i] = (static_cast<float>(from[i]) - less) * by;
        return;
      }
      for (int64_t row = begin; row < end; ++row) {
        const auto* numbers = from + row * width;
        float* to = out + row * width;
        for (int64_t i = 0; i < width; ++i) to[i] = (static_cast<float>(numbers[i]) - shift[i]) * scale[i];
      }
    });
  });
}

inline void to_whole_numbers(const View& in, int64_t count, int32_t* out) {
  with_type(in, [&](auto* from) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(from[i]);
  });
}

// [first, second, width] to [second, first, width].
template <typename Pool>
void swap_axes(Pool& pool, const float* in, int64_t first, int64_t second, int64_t width, float* out) {
  over_rows(pool, second, first * width, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      for (int64_t i = 0; i < first; ++i) {
        std::memcpy(out + (j * first + i) * width, in + (i * second + j) * width, width * sizeof(float));
      }
    }
  });
}

// e^x for x of at most 0 within 2e-7 of its value: 2^n times a polynomial of the rest; NaN where x is.
inline float exponential(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;  // and 0 below it, where numbers lose their digits
  const float n = __builtin_rintf(bounded * 1.44269504f);
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n == n ? n : 0) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}

template <typename Pool>
void softmax(Pool& pool, const float* in, int64_t count, int64_t width, float* out) {
  over_rows(pool, count, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = in + row * width;
      float *to = out + row * width, most = from[0], sum = 0;
      for (int64_t i = 1; i < width; ++i) most = from[i] > most ? from[i] : most;
      for (int64_t i = 0; i < width; ++i) to[i] = exponential(from[i] - most);
      for (int64_t i = 0; i < width; ++i) sum += to[i];
      for (int64_t i = 0; i < width; ++i) to[i] /= sum;
    }
  });
}

// The first of each row's largest numbers; NaN is larger than all.
template <typename Pool>
void largest_places(Pool& pool, const float* in, int64_t count, int64_t width, int32_t* out) {
  over_rows(pool, count, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = in + row * width;
      int64_t best = 0;
      for (int64_t i = 1; i < width && from[best] == from[best]; ++i) {
        if (!(from[i] <= from[best])) best = i;
      }
      out[row] = best;
    }
  });
}

}  // namespace accelnet
