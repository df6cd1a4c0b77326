// Maxima of windows of channels-last images, and the gradient that goes back to them.
#pragma once

#include "product.h"

namespace accelnet {

// One axis of a pooling; `low` pixels of padding stand in front of the image.
struct PooledAxis {
  int64_t in, out, window, stride, low;

  // Taps of an output that lie in the image: [begin, end).
  int64_t begin(int64_t output) const { return std::clamp<int64_t>(low - output * stride, 0, window); }
  int64_t end(int64_t output) const { return std::clamp<int64_t>(in + low - output * stride, 0, window); }
  int64_t pixel(int64_t output, int64_t tap) const { return output * stride + tap - low; }
};

struct Pooling {
  PooledAxis axes[3];
  int64_t images, channels;

  int64_t in_size() const { return axes[0].in * axes[1].in * axes[2].in * channels; }
  int64_t out_size() const { return axes[0].out * axes[1].out * axes[2].out * channels; }
  int64_t taps() const { return axes[0].window * axes[1].window * axes[2].window; }
};

template <int L>
struct Lanes {
  typedef float Values __attribute__((vector_size(L * 4), aligned(4), may_alias));
  typedef int32_t Marks __attribute__((vector_size(L * 4)));
  typedef uint8_t Bytes __attribute__((vector_size(L), aligned(1), may_alias));
};

// The taps of a window that lie in the image: their numbers, and where their pixels begin.
struct Window {
  std::array<int32_t, 256> taps;
  std::array<int64_t, 256> offsets;
  int64_t count;

  void set(const Pooling& p, const int64_t* output) {
    const auto& [a0, a1, a2] = p.axes;
    const int64_t end0 = a0.end(output[0]), end1 = a1.end(output[1]), end2 = a2.end(output[2]);
    count = 0;
    for (int64_t i = a0.begin(output[0]); i < end0; ++i) {
      for (int64_t j = a1.begin(output[1]); j < end1; ++j) {
        const int64_t line = (a0.pixel(output[0], i) * a1.in + a1.pixel(output[1], j)) * a2.in;
        for (int64_t k = a2.begin(output[2]); k < end2; ++k, ++count) {
          taps[count] = (i * a1.window + j) * a2.window + k;
          offsets[count] = (line + a2.pixel(output[2], k)) * p.channels;
        }
      }
    }
  }
};

// The maxima of one output pixel's channels [0, L), and which tap is the first to have each. NaN is larger than all.
template <int L, bool kMarks>
void pool_lanes(const Window& window, const float* image, float* out, uint8_t* marks) {
  using Values = typename Lanes<L>::Values;
  using Marks = typename Lanes<L>::Marks;
  Values best = Values{} - INFINITY;
  Marks mark{};
  for (int64_t i = 0; i < window.count; ++i) {
    const Values value = *reinterpret_cast<const Values*>(image + window.offsets[i]);
    const Marks larger = (value > best) | (value != value);
    best = larger ? value : best;
    if (kMarks) mark = larger ? Marks{} + window.taps[i] : mark;
  }
  *reinterpret_cast<Values*>(out) = best;
  if (kMarks) {
    *reinterpret_cast<typename Lanes<L>::Bytes*>(marks) = __builtin_convertvector(mark, typename Lanes<L>::Bytes);
  }
}

// Adds, or where windows do not meet writes, what one output pixel gives back to its window.
template <int L, bool kAdds>
void unpool_lanes(const Window& window, const uint8_t* marks, const float* gradient, float* image) {
  using Values = typename Lanes<L>::Values;
  using Marks = typename Lanes<L>::Marks;
  const Values given = *reinterpret_cast<const Values*>(gradient);
  const Marks mark = __builtin_convertvector(*reinterpret_cast<const typename Lanes<L>::Bytes*>(marks), Marks);
  for (int64_t i = 0; i < window.count; ++i) {
    Values& to = *reinterpret_cast<Values*>(image + window.offsets[i]);
    const Marks chosen = mark == Marks{} + window.taps[i];
    const Values part = chosen ? given : Values{};
    to = kAdds ? to + part : part;
  }
}

// Calls function(window, offset) for the output pixels of lines [begin, end) of the first axis.
template <typename F>
void each_output(const Pooling& p, int64_t begin, int64_t end, const F& function) {
  Window window;
  int64_t output[3], offset = begin * p.axes[1].out * p.axes[2].out * p.channels;
  for (output[0] = begin; output[0] < end; ++output[0]) {
    for (output[1] = 0; output[1] < p.axes[1].out; ++output[1]) {
      for (output[2] = 0; output[2] < p.axes[2].out; ++output[2], offset += p.channels) {
        window.set(p, output);
        function(window, offset);
      }
    }
  }
}

// Calls function(lanes, channel), lanes a constant of at most 16, 8, 4 and 1, over all channels.
template <typename F>
void each_channel(int64_t channels, const F& function) {
  int64_t channel = 0;
  // Vectors that the processor does not have would be taken apart into numbers.
  if constexpr (kLanes >= 16) {
    for (; channel + 16 <= channels; channel += 16) function(std::integral_constant<int, 16>{}, channel);
  }
  if constexpr (kLanes >= 8) {
    for (; channel + 8 <= channels; channel += 8) function(std::integral_constant<int, 8>{}, channel);
  }
  for (; channel + 4 <= channels; channel += 4) function(std::integral_constant<int, 4>{}, channel);
  for (; channel < channels; ++channel) function(std::integral_constant<int, 1>{}, channel);
}

// in [units, in pixels, channels], out and marks [units, out pixels, channels]; no marks, none are made.
template <typename Pool>
void max_pool(Pool& pool, const Pooling& p, int64_t units, const float* in, float* out, uint8_t* marks) {
  const int64_t operations = units * p.out_size() * p.taps(), threads = pool.worth(operations);
  const int64_t bands = threads == 1 ? 1 : std::min(p.axes[0].out, ceil_div(2 * threads, units));
  share_out(pool, operations, units * bands, [&](int64_t task) {
    const int64_t unit = task / bands, band = task % bands, lines = p.axes[0].out;
    const float* image = in + unit * p.in_size();
    each_output(p, lines * band / bands, lines * (band + 1) / bands, [&](const Window& window, int64_t offset) {
      offset += unit * p.out_size();
      each_channel(p.channels, [&](auto lanes, int64_t channel) {
        if (marks != nullptr) {
          pool_lanes<lanes(), true>(window, image + channel, out + offset + channel, marks + offset + channel);
        } else {
          pool_lanes<lanes(), false>(window, image + channel, out + offset + channel, nullptr);
        }
      });
    });
  });
}

template <typename Pool>
void max_pool_backward(Pool& pool, const Pooling& p, int64_t units, const uint8_t* marks, const float* gradient,
                       float* out) {
  bool adds = false, covers = true;
  for (const PooledAxis& axis : p.axes) {
    adds = adds || axis.stride < axis.window;
    covers = covers && axis.stride == axis.window && axis.low == 0 && axis.in == axis.out * axis.window;
  }
  share_out(pool, units * p.out_size() * p.taps(), units, [&](int64_t unit) {
    float* image = out + unit * p.in_size();
    if (!covers) std::fill(image, image + p.in_size(), 0.0f);
    each_output(p, 0, p.axes[0].out, [&](const Window& window, int64_t offset) {
      offset += unit * p.out_size();
      each_channel(p.channels, [&](auto lanes, int64_t channel) {
        (adds ? unpool_lanes<lanes(), true> : unpool_lanes<lanes(), false>)(
            window, marks + offset + channel, gradient + offset + channel, image + channel);
      });
    });
  });
}

}  // namespace accelnet
