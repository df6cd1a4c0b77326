// Convolutions of images rounded to 8 bits, each by its own largest number, with weights of 8 or 4 bits.
#pragma once

#include "convolution.h"
#include "rounded.h"

namespace accelnet {

// weights [taps * channels, columns], the channels of a tap filled up to whole quads (of 4 bits, pairs of quads).
struct RoundedConvolution {
  Convolution c;
  int64_t members, instructions;
  Packed weights;
  int64_t image_step, weights_step, scale_step, bias_step;
  bool relu;
};

template <typename Pool>
void convolve_rounded(Pool& pool, const RoundedConvolution& s, const float* images, const float* bias, float* out) {
  const Convolution& c = s.c;
  const MultiplyRounded multiply = rounded_product(s.instructions, s.weights.halves);
  const int64_t units = s.members * c.images, width = s.weights.quads / c.taps() * 4, image_size = c.in_pixels() * c.channels;
  const int64_t lines = c.lines_per_band(384 * 1024, ceil_div(2 * pool.num_threads(), units));
  const int64_t bands = ceil_div(c.axes[0].out, lines), panels = ceil_div(s.weights.columns, kPanel);
  const Phase phase = c.phases(lines)[0];
  std::vector<int32_t> offsets;
  for (const int64_t tap : phase.tap_offsets) {
    for (int64_t channel = 0; channel < width; channel += 4) offsets.push_back(tap * width + channel);
  }
  constexpr int64_t kTogether = 48;
  parallel_for(pool, units * bands, [&](int64_t task) {
    const int64_t unit = task / bands, member = unit / c.images, first = task % bands * lines;
    const int64_t last = std::min(first + lines, c.axes[0].out), start = first * c.axes[0].stride;
    const int64_t needed = c.needed_lines(lines, start) * c.padded_line();
    const float* image = images + member * s.image_step + unit % c.images * image_size;
    const float largest = largest_of(image, image_size), factor = factor_of(largest);
    int8_t* padded = scratch<int8_t>(0, needed * width);
    int32_t* sums = scratch<int32_t>(0, needed);  // of each pixel's channels
    std::fill(padded, padded + needed * width, int8_t{0});
    std::fill(sums, sums + needed, 0);
    copy_lines(c, image, start, c.needed_lines(lines, start), [&](const float* from, int64_t to, int64_t pixels) {
      if (c.channels == width) {
        round_numbers(from, pixels * width, factor, padded + to * width);
        for (int64_t i = 0; i < pixels; ++i) {
          int32_t sum = 0;
          for (int64_t k = 0; k < width; ++k) sum += padded[(to + i) * width + k];
          sums[to + i] = sum;
        }
        return;
      }
      for (int64_t i = 0; i < pixels; ++i) {
        sums[to + i] = round_numbers(from + i * c.channels, c.channels, factor, padded + (to + i) * width);
      }
    });
    Packed weights = s.weights;
    weights.data += member * s.weights_step, weights.scale += member * s.scale_step;
    const int64_t pixels = (last - first) * c.line();
    float* to = out + (unit * c.axes[0].out + first) * c.line() * c.features;
    for (int64_t begin = 0; begin < pixels; begin += kTogether) {
      const int64_t count = std::min(kTogether, pixels - begin);
      const int8_t* rows[kTogether];
      float* results[kTogether];
      float scales[kTogether];
      int32_t of_rows[kTogether];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t pixel = phase.pixel_offsets[begin + i];
        rows[i] = padded + pixel * width;
        results[i] = to + static_cast<int64_t>(phase.outputs[begin + i]) * c.features;
        scales[i] = scale_of(largest);
        of_rows[i] = 0;
        for (const int64_t tap : phase.tap_offsets) of_rows[i] += sums[pixel + tap];
      }
      multiply(count, {rows, scales, of_rows}, offsets.data(), weights, 0, panels, bias ? bias + member * s.bias_step : nullptr,
               false, s.relu, results);
    }
  });
}

}  // namespace accelnet
