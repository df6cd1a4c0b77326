// Convolutions of every channel on its own: vectors of channels, one product and sum per tap.
#pragma once

#include "convolution.h"

namespace accelnet {

constexpr int kPixels = 4, kTaps = 9;

inline bool is_depthwise(const Convolution& c) { return c.groups == c.channels && c.groups == c.features; }

template <int P>
void depthwise_tile(const float* const* pixels, const int32_t* offsets, int64_t taps, const float* kernel,
                    int64_t channels, float* const* out) {
  Vec sum[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) sum[p] = Vec{};
  for (int64_t tap = 0; tap < taps; ++tap, kernel += channels) {
    const Vec weight = load(kernel);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sum[p] += weight * load(pixels[p] + offsets[tap]);
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) store(out[p], sum[p]);
}

// Whether the kernel has 3 x 3 taps and steps by a pixel or two: then the image is read where it lies.
inline bool has_threes(const Convolution& c) {
  for (int axis = 0; axis < 2; ++axis) {
    const Axis& a = c.axes[axis];
    if (a.kernel != 3 || a.lhs_dilation != 1 || a.rhs_dilation != 1) return false;
  }
  return c.axes[1].stride <= 2 && is_flat(c.axes[2]) && c.channels % kLanes == 0;
}

// `count` neighbouring outputs, at most kPixels, from the pixels at(line, column).
template <int S, typename At>
void depthwise_threes(const At& at, const float* kernel, int64_t channels, float* out, int64_t count,
                      const Finish& finish, int64_t channel) {
  constexpr int kWidth = (kPixels - 1) * S + 3;
  Vec sum[kPixels] = {};
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    Vec pixels[kWidth];
#pragma GCC unroll 16
    for (int j = 0; j < kWidth; ++j) pixels[j] = load(at(i, j));
#pragma GCC unroll 3
    for (int tap = 0; tap < 3; ++tap) {
      const Vec weight = load(kernel + (i * 3 + tap) * channels + channel);
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p) sum[p] += weight * pixels[p * S + tap];
    }
  }
  if (count == kPixels) {
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) store(out + p * channels + channel, finish(sum[p], channel));
  } else {
    for (int p = 0; p < count; ++p) store(out + p * channels + channel, finish(sum[p], channel));
  }
}

// One line of outputs; `zeros` [channels] stands for what lies outside of the image.
template <int S>
void depthwise_line(const Convolution& c, const float* image, int64_t line, const float* kernel, const float* zeros,
                    float* out, const Finish& finish) {
  constexpr int kWidth = (kPixels - 1) * S + 3;
  const auto& [high, wide, flat] = c.axes;
  const int64_t top = line * high.stride - high.low;
  for (int64_t o = 0; o < wide.out; o += kPixels) {
    const int64_t left = o * S - wide.low, count = std::min<int64_t>(kPixels, wide.out - o);
    float* to = out + o * c.channels;
    if (top >= 0 && top + 3 <= high.in && left >= 0 && left + kWidth <= wide.in && count == kPixels) {
      const float* corner = image + (top * wide.in + left) * c.channels;
      for (int64_t channel = 0; channel < c.channels; channel += kLanes) {
        const auto at = [&](int i, int j) { return corner + (i * wide.in + j) * c.channels + channel; };
        depthwise_threes<S>(at, kernel, c.channels, to, kPixels, finish, channel);
      }
      continue;
    }
    const float* pixels[3][kWidth];
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < kWidth; ++j) {
        const bool inside = top + i >= 0 && top + i < high.in && left + j >= 0 && left + j < wide.in;
        pixels[i][j] = inside ? image + ((top + i) * wide.in + left + j) * c.channels : zeros;
      }
    }
    for (int64_t channel = 0; channel < c.channels; channel += kLanes) {
      const auto at = [&](int i, int j) { return pixels[i][j] + channel; };
      depthwise_threes<S>(at, kernel, c.channels, to, count, finish, channel);
    }
  }
}

template <typename Pool>
void convolve_threes(Pool& pool, const Convolution& c, int64_t members, const float* lhs, int64_t lhs_step,
                     Weights rhs, float* out, const Finish& finish) {
  const int64_t units = members * c.images, operations = 4 * c.operations(units), threads = pool.worth(operations);
  const int64_t bands = threads == 1 ? 1 : std::min(c.axes[0].out, ceil_div(2 * threads, units));
  const int64_t lines = ceil_div(c.axes[0].out, bands), size = c.line() * c.channels;
  share_out(pool, operations, units * bands, [&](int64_t task) {
    const int64_t unit = task / bands, first = task % bands * lines, member = unit / c.images;
    const float* image = lhs + member * lhs_step + unit % c.images * c.in_pixels() * c.channels;
    float* zeros = scratch(0, c.channels);
    std::fill(zeros, zeros + c.channels, 0.0f);
    for (int64_t line = first; line < std::min(first + lines, c.axes[0].out); ++line) {
      const auto one = c.axes[1].stride == 1 ? depthwise_line<1> : depthwise_line<2>;
      one(c, image, line, rhs.values + member * rhs.step, zeros, out + (unit * c.axes[0].out + line) * size, finish);
    }
  });
}

template <typename Pool>
void convolve_depthwise(Pool& pool, const Convolution& c, int64_t members, const float* lhs, int64_t lhs_step,
                        Weights rhs, float* out, const Finish& finish = {}) {
  if (has_threes(c)) return convolve_threes(pool, c, members, lhs, lhs_step, rhs, out, finish);
  const int64_t units = members * c.images, pitch = round_up(c.channels, kLanes);
  // It reads and writes as often as it multiplies.
  const int64_t operations = 4 * c.operations(units), threads = pool.worth(operations);
  const int64_t lines = c.lines_per_band(192 * 1024, threads == 1 ? 1 : ceil_div(2 * threads, units));
  const int64_t bands = ceil_div(c.axes[0].out, lines);
  const auto& phases = phases_of(c, lines);
  std::vector<std::vector<int32_t>> offsets;
  for (const Phase& phase : phases) {
    offsets.push_back(phase.tap_offsets);
    for (int32_t& offset : offsets.back()) offset *= pitch;
  }
  share_out(pool, operations, units * bands, [&](int64_t task) {
    const int64_t unit = task / bands, member = unit / c.images, first = task % bands * lines;
    const int64_t num_lines = std::min(lines, c.axes[0].out - first);
    const int64_t start = first / c.axes[0].lhs_dilation * c.axes[0].stride;
    const int64_t needed = c.needed_lines(lines, start);
    float* padded = scratch(0, c.needed_lines(lines) * c.padded_line() * pitch);
    std::fill(padded, padded + needed * c.padded_line() * pitch, 0.0f);
    copy_lines(c, lhs + member * lhs_step + unit % c.images * c.in_pixels() * c.channels, start, needed,
               [&](const float* from, int64_t place, int64_t pixels) {
                 if (pitch == c.channels) {
                   std::memcpy(padded + place * pitch, from, pixels * pitch * sizeof(float));
                   return;
                 }
                 for (int64_t i = 0; i < pixels; ++i) {
                   std::memcpy(padded + (place + i) * pitch, from + i * c.channels, c.channels * sizeof(float));
                 }
               });
    float* target = out + (unit * c.axes[0].out + first) * c.line() * c.channels;
    for (size_t number = 0; number < phases.size(); ++number) {
      const Phase& phase = phases[number];
      const int64_t taps = phase.taps.size();
      float* kernel = scratch(1, taps * pitch);
      for (int64_t tap = 0; tap < taps; ++tap) {
        std::memcpy(kernel + tap * pitch, rhs.values + member * rhs.step + phase.taps[tap] * c.channels,
                    c.channels * sizeof(float));
      }
      const int64_t end = std::lower_bound(phase.outputs.begin(), phase.outputs.end(), num_lines * c.line()) -
                          phase.outputs.begin();
      for (int64_t pixel = 0; pixel < end; pixel += kPixels) {
        const int64_t count = std::min<int64_t>(kPixels, end - pixel);
        for (int64_t channel = 0; channel < c.channels; channel += kLanes) {
          const int64_t width = std::min<int64_t>(kLanes, c.channels - channel);
          const float* pixels[kPixels];
          float* results[kPixels];
          float partial[kPixels][kLanes];
          for (int64_t p = 0; p < count; ++p) {
            pixels[p] = padded + phase.pixel_offsets[pixel + p] * pitch + channel;
            results[p] = width < kLanes ? partial[p] : target + phase.outputs[pixel + p] * c.channels + channel;
          }
          if (count == kPixels) {
            depthwise_tile<kPixels>(pixels, offsets[number].data(), taps, kernel + channel, pitch, results);
          } else {
            for (int64_t p = 0; p < count; ++p) {
              depthwise_tile<1>(pixels + p, offsets[number].data(), taps, kernel + channel, pitch, results + p);
            }
          }
          if (width == kLanes) continue;
          for (int64_t p = 0; p < count; ++p) {
            std::memcpy(target + phase.outputs[pixel + p] * c.channels + channel, partial[p], width * sizeof(float));
          }
        }
      }
    }
    finish.rows(target, num_lines * c.line(), c.channels, 0, c.channels);
  });
}

// sums[t * step] += sum over pixels of gradient * pixel at offset t.
template <int T>
void depthwise_gradient_tile(const float* padded, const int32_t* pixels, int64_t pitch, int64_t num_pixels,
                             const int32_t* offsets, const float* gradient, const int32_t* outputs, int64_t channels,
                             float* sums) {
  Vec sum[T];
#pragma GCC unroll 9
  for (int t = 0; t < T; ++t) sum[t] = load(sums + t * pitch);
  for (int64_t i = 0; i < num_pixels; ++i) {
    const Vec value = load(gradient + outputs[i] * channels);
    const float* pixel = padded + pixels[i] * pitch;
#pragma GCC unroll 9
    for (int t = 0; t < T; ++t) sum[t] += value * load(pixel + offsets[t]);
  }
#pragma GCC unroll 9
  for (int t = 0; t < T; ++t) store(sums + t * pitch, sum[t]);
}

template <int... T>
constexpr std::array<decltype(&depthwise_gradient_tile<1>), sizeof...(T)> gradient_tiles(
    std::integer_sequence<int, T...>) {
  return {&depthwise_gradient_tile<T + 1>...};
}

template <typename Pool>
void kernel_gradient_depthwise(Pool& pool, const Convolution& c, int64_t members, const float* lhs, int64_t lhs_step,
                               const float* gradient, int64_t gradient_step, float* out) {
  static constexpr auto tiles = gradient_tiles(std::make_integer_sequence<int, kTaps>());
  const int64_t pitch = round_up(c.channels, kLanes), elements = c.taps() * pitch;
  const int64_t lines = c.lines_per_band(192 * 1024, 1), bands = ceil_div(c.axes[0].out, lines);
  const int64_t parts = num_parts(c.images * bands, elements * members);
  auto phases = c.phases(lines);
  for (Phase& phase : phases) {
    for (int32_t& offset : phase.tap_offsets) offset *= pitch;
  }
  Memory<float> partial(members * parts * elements);
  parallel_for(pool, members * parts, [&](int64_t number) {
    const int64_t member = number / parts, part = number % parts;
    float* sums = partial.data() + number * elements;
    for (int64_t task = c.images * bands * part / parts; task < c.images * bands * (part + 1) / parts; ++task) {
      const int64_t image = task / bands, first = task % bands * lines;
      const int64_t num_lines = std::min(lines, c.axes[0].out - first);
      const int64_t start = first / c.axes[0].lhs_dilation * c.axes[0].stride;
      const int64_t needed = c.needed_lines(lines, start);
      float* padded = scratch(0, c.needed_lines(lines) * c.padded_line() * pitch);
      std::fill(padded, padded + needed * c.padded_line() * pitch, 0.0f);
      copy_lines(c, lhs + member * lhs_step + image * c.in_pixels() * c.channels, start, needed,
                 [&](const float* from, int64_t place, int64_t pixels) {
                   for (int64_t i = 0; i < pixels; ++i) {
                     std::memcpy(padded + (place + i) * pitch, from + i * c.channels, c.channels * sizeof(float));
                   }
                 });
      const float* of_band =
          gradient + member * gradient_step + (image * c.axes[0].out + first) * c.line() * c.channels;
      // A copy with whole vectors where the channels do not fill them.
      if (pitch != c.channels) {
        float* copied = scratch(1, lines * c.line() * pitch);
        for (int64_t i = 0; i < num_lines * c.line(); ++i) {
          std::memcpy(copied + i * pitch, of_band + i * c.channels, c.channels * sizeof(float));
        }
        of_band = copied;
      }
      for (const Phase& phase : phases) {
        const int64_t end = std::lower_bound(phase.outputs.begin(), phase.outputs.end(), num_lines * c.line()) -
                            phase.outputs.begin();
        const int64_t taps = phase.taps.size();
        float* of_phase = scratch(2, taps * pitch);
        std::fill(of_phase, of_phase + taps * pitch, 0.0f);
        for (int64_t channel = 0; channel < c.channels; channel += kLanes) {
          for (int64_t tap = 0; tap < taps; tap += kTaps) {
            tiles[std::min<int64_t>(kTaps, taps - tap) - 1](padded + channel, phase.pixel_offsets.data(), pitch, end,
                                                            phase.tap_offsets.data() + tap, of_band + channel,
                                                            phase.outputs.data(), pitch, of_phase + tap * pitch + channel);
          }
        }
        for (int64_t tap = 0; tap < taps; ++tap) {
          for (int64_t i = 0; i < c.channels; ++i) {
            sums[phase.taps[tap] * c.channels + i] += of_phase[tap * pitch + i];
          }
        }
      }
    }
  });
  for (int64_t member = 0; member < members; ++member) {
    const int64_t size = c.taps() * c.channels;
    float* to = out + member * size;
    std::memcpy(to, partial.data() + member * parts * elements, size * sizeof(float));
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t i = 0; i < size; ++i) to[i] += partial[(member * parts + part) * elements + i];
    }
  }
}

}  // namespace accelnet
