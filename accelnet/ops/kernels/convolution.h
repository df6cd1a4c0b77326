// Convolutions of channels-last images: products whose rows lie in the padded image itself, so that no patches are made.
#pragma once

#include "product.h"
#include "views.h"

namespace accelnet {


// One axis of a convolution. Output pixel o meets pixel (o * stride + tap * rhs_dilation - low) / lhs_dilation of the
// image where that is whole, so that outputs which are equal modulo lhs_dilation, a phase, meet the same taps.
struct Axis {
  int64_t in, kernel, out, stride, low, lhs_dilation, rhs_dilation;
  int64_t before = 0, padded = 0;  // pixels of the border in front of the image, and of the image with its border

  bool operator==(const Axis& other) const {
    const auto numbers = [](const Axis& a) {
      return std::array<int64_t, 7>{a.in, a.kernel, a.out, a.stride, a.low, a.lhs_dilation, a.rhs_dilation};
    };
    return numbers(*this) == numbers(other);
  }
  // The pixel that the first output of a phase meets by a tap, or nothing.
  bool meets(int64_t phase, int64_t tap, int64_t* pixel) const {
    const int64_t place = phase * stride + tap * rhs_dilation - low;
    *pixel = (place - (place % lhs_dilation + lhs_dilation) % lhs_dilation) / lhs_dilation;
    return place % lhs_dilation == 0;
  }
  int64_t num_phases() const { return std::min(lhs_dilation, out); }
  // Outputs of a phase among the first `count`.
  int64_t outputs(int64_t phase, int64_t count) const { return ceil_div(count - phase, lhs_dilation); }

  void set_border() {
    int64_t first = 0, last = 0;
    for (int64_t phase = 0; phase < num_phases(); ++phase) {
      for (int64_t tap = 0, pixel; tap < kernel; ++tap) {
        if (!meets(phase, tap, &pixel)) continue;
        first = std::min(first, pixel);
        last = std::max(last, pixel + (outputs(phase, out) - 1) * stride);
      }
    }
    before = -first, padded = last + 1 - first;
  }
};

// Outputs that meet the same taps. Offsets are in pixels of the padded image.
struct Phase {
  std::vector<int32_t> taps, tap_offsets, pixel_offsets, outputs;
};

// Whether there is nothing along an axis.
inline bool is_flat(const Axis& axis) { return axis.in == 1 && axis.out == 1 && axis.kernel == 1 && axis.low == 0; }

struct Convolution {
  Axis axes[3];
  int64_t images, channels, features, groups;

  // Whether another has the same phases.
  bool is(const Convolution& other) const { return std::equal(axes, axes + 3, other.axes); }
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  int64_t in_pixels() const { return axes[0].in * axes[1].in * axes[2].in; }
  int64_t line() const { return axes[1].out * axes[2].out; }
  int64_t padded_line() const { return axes[1].padded * axes[2].padded; }
  int64_t width() const { return channels / groups; }
  int64_t group_features() const { return features / groups; }
  int64_t operations(int64_t units) const { return 2 * units * axes[0].out * line() * taps() * width() * features; }
  // Whether it is the product of all pixels with one matrix.
  bool is_product() const {
    for (const Axis& axis : axes) {
      if (axis.kernel > 1 || axis.stride > 1 || axis.lhs_dilation > 1 || axis.in != axis.out || axis.low) return false;
    }
    return groups == 1;
  }

  // The phases of `lines` output lines along the first axis; `lines` is a multiple of its dilation, or all.
  std::vector<Phase> phases(int64_t lines) const {
    std::vector<Phase> all;
    const int64_t steps[] = {padded_line(), axes[2].padded, 1};
    for (int64_t p0 = 0; p0 < std::min(axes[0].num_phases(), lines); ++p0) {
      for (int64_t p1 = 0; p1 < axes[1].num_phases(); ++p1) {
        for (int64_t p2 = 0; p2 < axes[2].num_phases(); ++p2) all.push_back(phase({p0, p1, p2}, lines, steps));
      }
    }
    return all;
  }

  // Lines of the padded image, from line `start` on, that `lines` output lines meet; none beyond its end.
  int64_t needed_lines(int64_t lines, int64_t start = 0) const {
    const int64_t all = axes[0].padded - (axes[0].out - lines) / axes[0].lhs_dilation * axes[0].stride;
    return std::max<int64_t>(0, std::min(all, axes[0].padded - start));
  }

  // Output lines whose input and output stay in the second cache together, and of which there are at least `tasks`
  // parts if there can be.
  int64_t lines_per_band(int64_t bytes, int64_t tasks) const {
    const int64_t step = axes[0].lhs_dilation;
    int64_t lines = round_up(axes[0].out, step);
    const auto size = [&](int64_t n) {
      return static_cast<int64_t>(sizeof(float)) * (needed_lines(n) * padded_line() * channels + n * line() * features);
    };
    while (lines > step && (size(std::min(lines, axes[0].out)) > bytes || ceil_div(axes[0].out, lines) < tasks)) {
      lines = round_up(ceil_div(lines, 2), step);
    }
    return std::min(lines, axes[0].out);
  }

 private:
  Phase phase(const std::array<int64_t, 3>& p, int64_t lines, const int64_t* steps) const {
    Phase made;
    int64_t pixel[3], tap[3];
    for (tap[0] = 0; tap[0] < axes[0].kernel; ++tap[0]) {
      for (tap[1] = 0; tap[1] < axes[1].kernel; ++tap[1]) {
        for (tap[2] = 0; tap[2] < axes[2].kernel; ++tap[2]) {
          bool all = true;
          int64_t offset = 0;
          for (int axis = 0; axis < 3; ++axis) {
            all = axes[axis].meets(p[axis], tap[axis], &pixel[axis]) && all;
            offset += (pixel[axis] + axes[axis].before) * steps[axis];
          }
          if (!all) continue;
          made.taps.push_back((tap[0] * axes[1].kernel + tap[1]) * axes[2].kernel + tap[2]);
          made.tap_offsets.push_back(offset);
        }
      }
    }
    int64_t counts[3] = {axes[0].outputs(p[0], lines), axes[1].outputs(p[1], axes[1].out),
                         axes[2].outputs(p[2], axes[2].out)};
    for (int64_t i = 0; i < counts[0]; ++i) {
      for (int64_t j = 0; j < counts[1]; ++j) {
        for (int64_t k = 0; k < counts[2]; ++k) {
          made.pixel_offsets.push_back(i * axes[0].stride * steps[0] + j * axes[1].stride * steps[1] +
                                       k * axes[2].stride * steps[2]);
          made.outputs.push_back(((p[0] + i * axes[0].lhs_dilation) * axes[1].out + p[1] + j * axes[1].lhs_dilation) *
                                     axes[2].out + p[2] + k * axes[2].lhs_dilation);
        }
      }
    }
    return made;
  }
};

// The phases of a convolution, which this thread keeps for the next call: of a small image they take as long to list as
// its products.
inline const std::vector<Phase>& phases_of(const Convolution& c, int64_t lines) {
  struct Kept {
    Convolution convolution;
    int64_t lines;
    std::vector<Phase> phases;
  };
  static thread_local std::vector<std::unique_ptr<Kept>> kept;
  for (const auto& one : kept) {
    if (one->lines == lines && one->convolution.is(c)) return one->phases;
  }
  if (kept.size() == 64) kept.clear();
  kept.push_back(std::make_unique<Kept>(Kept{c, lines, c.phases(lines)}));
  return kept.back()->phases;
}

// lhs [members, images, in, channels], out [members, images, out, features], with three spatial axes; the geometry is
// groups, then per axis strides, padding in front, dilations of the image and of the kernel, and the kernel's size.
// Numbers that tell a geometry.
constexpr size_t kGeometry = 16;

inline Convolution make_convolution(Numbers lhs, Numbers out, Numbers geometry) {
  Convolution c;
  c.images = lhs[1], c.channels = lhs[5], c.features = out[5], c.groups = geometry[0];
  for (int axis = 0; axis < 3; ++axis) {
    c.axes[axis] = {lhs[2 + axis],      geometry[13 + axis], out[2 + axis],      geometry[1 + axis],
                    geometry[4 + axis], geometry[7 + axis],  geometry[10 + axis]};
    c.axes[axis].set_border();
  }
  return c;
}

// Copies `count` lines of the padded image, from line `first`, by copy(from, to, pixels): pointers to a pixel of the
// image and to the number of its place among the lines. What lies outside has been cleared.
template <typename Copy>
void copy_lines(const Convolution& c, const float* image, int64_t first, int64_t count, const Copy& copy) {
  const auto& [a0, a1, a2] = c.axes;
  const int64_t begin = std::max<int64_t>(0, first - a0.before), end = std::min(a0.in, first - a0.before + count);
  const int64_t rows = std::min(a1.in, a1.padded - a1.before), pixels = std::min(a2.in, a2.padded - a2.before);
  if (pixels <= 0) return;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < rows; ++j) {
      copy(image + (i * a1.in + j) * a2.in * c.channels,
           (i + a0.before - first) * c.padded_line() + (j + a1.before) * a2.padded + a2.before, pixels);
    }
  }
}

// Numbers of the kernels of one member as `convolve` reads them: per group and phase, panels of [taps * width, kColumns].
inline int64_t prepared_size(const Convolution& c, const std::vector<Phase>& phases) {
  int64_t taps = 0;
  for (const Phase& phase : phases) taps += phase.taps.size();
  return c.groups * taps * c.width() * round_up(c.group_features(), kColumns);
}

template <typename Pool>
void prepare_kernels(Pool& pool, const Convolution& c, const std::vector<Phase>& phases, int64_t members,
                     const float* rhs, int64_t rhs_step, float* out) {
  const int64_t size = prepared_size(c, phases) / c.groups;
  share_out(pool, members * c.groups * size, members * c.groups, [&](int64_t matrix) {
    const float* kernel = rhs + matrix / c.groups * rhs_step + matrix % c.groups * c.group_features();
    float* to = out + matrix * size;
    for (const Phase& phase : phases) {
      for (int64_t column = 0; column < c.group_features(); column += kColumns) {
        const int64_t columns = std::min<int64_t>(kColumns, c.group_features() - column);
        for (const int64_t tap : phase.taps) {
          pack_panel(kernel + tap * c.width() * c.features + column, c.features, c.width(), columns, to);
          to += c.width() * kColumns;
        }
      }
    }
  });
}

// out = the convolution of lhs and rhs.
template <typename Pool>
void convolve(Pool& pool, const Convolution& c, int64_t members, const float* lhs, int64_t lhs_step, Weights rhs,
              float* out, const Finish& finish = {}) {
  const int64_t units = members * c.images, operations = c.operations(units), threads = pool.worth(operations);
  const int64_t lines = c.lines_per_band(192 * 1024, threads == 1 ? 1 : ceil_div(2 * threads, units));
  const int64_t bands = ceil_div(c.axes[0].out, lines), panels = ceil_div(c.group_features(), kColumns);
  const auto& phases = phases_of(c, lines);
  // Per phase: where its matrices begin, and the offset of every tap and channel.
  std::vector<int64_t> begins;
  std::vector<std::vector<int32_t>> offsets;
  int64_t size = 0;
  for (const Phase& phase : phases) {
    begins.push_back(size);
    offsets.emplace_back();
    for (const int64_t tap : phase.tap_offsets) {
      for (int64_t channel = 0; channel < c.width(); ++channel) offsets.back().push_back(tap * c.channels + channel);
    }
    size += static_cast<int64_t>(offsets.back().size()) * panels * kColumns;
  }
  const int64_t matrices = rhs.step ? members : 1;
  Memory<float> own(rhs.prepared ? 0 : matrices * c.groups * size);
  if (!rhs.prepared) prepare_kernels(pool, c, phases, matrices, rhs.values, rhs.step, own.data());
  const float* packed = rhs.prepared ? rhs.values : own.data();
  share_out(pool, operations, units * bands, [&](int64_t task) {
    const int64_t unit = task / bands, member = unit / c.images, first = task % bands * lines;
    const int64_t last = std::min(first + lines, c.axes[0].out);
    const int64_t start = first / c.axes[0].lhs_dilation * c.axes[0].stride;
    const int64_t needed = c.needed_lines(lines, start);
    float* padded = scratch(0, c.needed_lines(lines) * c.padded_line() * c.channels);
    std::fill(padded, padded + needed * c.padded_line() * c.channels, 0.0f);
    copy_lines(c, lhs + member * lhs_step + unit % c.images * c.in_pixels() * c.channels, start, needed,
               [&](const float* from, int64_t place, int64_t pixels) {
                 std::memcpy(padded + place * c.channels, from, pixels * c.channels * sizeof(float));
               });
    float* target = out + (unit * c.axes[0].out + first) * c.line() * c.features;
    for (size_t number = 0; number < phases.size(); ++number) {
      const Phase& phase = phases[number];
      const int64_t all = offsets[number].size();
      // A last band is shorter: outputs are in the order of lines.
      const int64_t end = std::lower_bound(phase.outputs.begin(), phase.outputs.end(), (last - first) * c.line()) -
                          phase.outputs.begin();
      for (int64_t group = 0; group < c.groups; ++group) {
        const float* matrix =
            packed + ((rhs.step ? member : 0) * c.groups + group) * size + begins[number];
        int64_t k = 0;
        do {
          const int64_t depth = std::min(kDepth, all - k);
          const Finish now = k + depth == all ? finish : Finish{};
          for (int64_t p = 0; p < panels; ++p) {
            const int64_t columns = std::min<int64_t>(kColumns, c.group_features() - p * kColumns);
            const int64_t feature = group * c.group_features() + p * kColumns;
            each_tile(end, [&](int64_t pixel, int num_rows) {
              const float* rows[kRows];
              float* results[kRows];
              for (int m = 0; m < num_rows; ++m) {
                rows[m] = padded + phase.pixel_offsets[pixel + m] * c.channels + group * c.width();
                results[m] = target + phase.outputs[pixel + m] * c.features + feature;
              }
              product(num_rows, rows, offsets[number].data() + k, depth, matrix + (p * all + k) * kColumns, kColumns,
                      results, columns, k > 0, now, feature);
            });
          }
          k += depth;
        } while (k < all);
      }
    }
  });
}

// out = the gradient of rhs, from lhs and the gradient of the convolution.
template <typename Pool>
void kernel_gradient(Pool& pool, const Convolution& c, int64_t members, const float* lhs, int64_t lhs_step,
                     const float* gradient, int64_t gradient_step, float* out) {
  const int64_t lines = c.lines_per_band(128 * 1024, 1), bands = ceil_div(c.axes[0].out, lines);
  const int64_t elements = c.taps() * c.width() * c.features, panels = ceil_div(c.group_features(), kColumns);
  // Small images are taken together, so that the products are long.
  const int64_t pixels = c.axes[0].out * c.line();
  const int64_t images = bands > 1 ? 1 : std::min(c.images, ceil_div(256, pixels));
  const int64_t tasks = ceil_div(c.images, images) * bands, parts = num_parts(tasks, elements * members);
  // Few channels lie side by side, so that one strided read of a tile's rows does not evict the next.
  const int64_t pitch = std::min<int64_t>(kRows, c.width()), blocks = ceil_div(c.width(), pitch);
  const int64_t image_size = c.needed_lines(lines) * c.padded_line() * pitch, block_size = images * image_size;
  auto phases = c.phases(lines);
  for (Phase& phase : phases) {
    const size_t count = phase.outputs.size();
    for (int32_t& offset : phase.pixel_offsets) offset *= pitch;
    for (size_t i = count; i < images * count; ++i) {
      phase.pixel_offsets.push_back(phase.pixel_offsets[i - count] + image_size);
      phase.outputs.push_back(phase.outputs[i - count] + pixels);
    }
  }
  Memory<float> partial(members * parts * elements);
  parallel_for(pool, members * parts, [&](int64_t number) {
    const int64_t member = number / parts, part = number % parts;
    const int64_t begin = tasks * part / parts, end = tasks * (part + 1) / parts;
    float* sums = partial.data() + number * elements;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / bands * images, first = task % bands * lines;
      const int64_t num_images = std::min(images, c.images - image);
      const int64_t num_lines = std::min(lines, c.axes[0].out - first);
      const int64_t start = first / c.axes[0].lhs_dilation * c.axes[0].stride;
      const int64_t needed = c.needed_lines(lines, start);
      float* padded = scratch(0, c.groups * blocks * block_size);
      std::fill(padded, padded + c.groups * blocks * block_size, 0.0f);
      for (int64_t i = 0; i < num_images; ++i) {
        copy_lines(c, lhs + member * lhs_step + (image + i) * c.in_pixels() * c.channels, start, needed,
                   [&](const float* from, int64_t place, int64_t count) {
                     for (float* to = padded + i * image_size + place * pitch; count > 0; --count, to += pitch) {
                       for (int64_t block = 0; block < c.groups * blocks; ++block) {
                         const int64_t width = std::min(pitch, c.width() - block % blocks * pitch);
                         for (int64_t j = 0; j < width; ++j) to[block * block_size + j] = from[j];
                         from += width;
                       }
                     }
                   });
      }
      const int64_t end_pixel = (num_images - 1) * pixels + num_lines * c.line();
      const float* of_band = gradient + member * gradient_step + (image * pixels + first * c.line()) * c.features;
      for (const Phase& phase : phases) {
        const int64_t num_pixels =
            std::lower_bound(phase.outputs.begin(), phase.outputs.end(), end_pixel) - phase.outputs.begin();
        const int64_t num_taps = phase.taps.size();
        float* columns = scratch(1, num_pixels * kColumns);
        for (int64_t group = 0; group < c.groups; ++group) {
          for (int64_t p = 0; p < panels; ++p) {
            const int64_t column = group * c.group_features() + p * kColumns;
            const int64_t width = std::min<int64_t>(kColumns, c.group_features() - p * kColumns);
            for (int64_t pixel = 0; pixel < num_pixels; ++pixel) {
              pack_panel(of_band + phase.outputs[pixel] * c.features + column, 0, 1, width, columns + pixel * kColumns);
            }
            for (int64_t block = 0; block < blocks; ++block) {
              const int64_t count = std::min(pitch, c.width() - block * pitch);
              each_tile(num_taps * count, [&](int64_t row, int num_rows) {
                const float* rows[kRows];
                float* results[kRows];
                for (int m = 0; m < num_rows; ++m) {
                  const int64_t tap = (row + m) / count, channel = (row + m) % count;
                  rows[m] = padded + (group * blocks + block) * block_size + phase.tap_offsets[tap] * pitch + channel;
                  results[m] = sums + (phase.taps[tap] * c.width() + block * pitch + channel) * c.features + column;
                }
                product(num_rows, rows, phase.pixel_offsets.data(), num_pixels, columns, kColumns, results, width, true);
              });
            }
          }
        }
      }
    }
  });
  for (int64_t member = 0; member < members; ++member) {
    add_parts(pool, partial.data() + member * parts * elements, parts, elements, out + member * elements);
  }
}

}  // namespace accelnet
