// Winograd's minimal filtering F(4x4, 3x3): 36 products per tile of 4x4 pixels instead of 144. Lavin and Gray 2016.
#pragma once

#include "convolution.h"

namespace accelnet {

constexpr int kTile = 4, kPoints = 6;

// Each of the three: `to[i]` = row i of a matrix times `from`, elements `step` apart.
inline void transform_input(const Vec* from, int from_step, Vec* to, int to_step) {
  const Vec d0 = from[0], d1 = from[from_step], d2 = from[2 * from_step], d3 = from[3 * from_step],
            d4 = from[4 * from_step], d5 = from[5 * from_step];
  const Vec even = d4 - 4 * d2, odd = d3 - 4 * d1, even2 = d4 - d2, odd2 = 2 * (d3 - d1);
  to[0] = 4 * d0 - 5 * d2 + d4;
  to[to_step] = even + odd;
  to[2 * to_step] = even - odd;
  to[3 * to_step] = even2 + odd2;
  to[4 * to_step] = even2 - odd2;
  to[5 * to_step] = 4 * d1 - 5 * d3 + d5;
}

inline void transform_output(const Vec* from, int from_step, Vec* to, int to_step) {
  const Vec m0 = from[0], m1 = from[from_step], m2 = from[2 * from_step], m3 = from[3 * from_step],
            m4 = from[4 * from_step], m5 = from[5 * from_step];
  const Vec sum = m1 + m2, difference = m1 - m2, sum2 = m3 + m4, difference2 = m3 - m4;
  to[0] = m0 + sum + sum2;
  to[to_step] = difference + 2 * difference2;
  to[2 * to_step] = sum + 4 * sum2;
  to[3 * to_step] = difference + 8 * difference2 + m5;
}

// The transpose of transform_output: the gradient's pixels to points.
inline void transform_gradient(const Vec* from, int from_step, Vec* to, int to_step) {
  const Vec g0 = from[0], g1 = from[from_step], g2 = from[2 * from_step], g3 = from[3 * from_step];
  const Vec even = g0 + g2, odd = g1 + g3, even2 = g0 + 4 * g2, odd2 = 2 * g1 + 8 * g3;
  to[0] = g0;
  to[to_step] = even + odd;
  to[2 * to_step] = even - odd;
  to[3 * to_step] = even2 + odd2;
  to[4 * to_step] = even2 - odd2;
  to[5 * to_step] = g3;
}

// A kernel's taps to points, and back by the transpose.
constexpr float kKernel[kPoints][3] = {{1 / 4.f, 0, 0},
                                       {-1 / 6.f, -1 / 6.f, -1 / 6.f},
                                       {-1 / 6.f, 1 / 6.f, -1 / 6.f},
                                       {1 / 24.f, 1 / 12.f, 1 / 6.f},
                                       {1 / 24.f, -1 / 12.f, 1 / 6.f},
                                       {0, 0, 1}};

// For fewer tiles, transforming the kernels takes longer than is won: one image of 14x14x32 to 64 channels, 16 tiles,
// took 208 us and 112 without, two 143 and 184 (two cores, AMD EPYC).
constexpr int64_t kFewestTiles = 32;
// Where the kernels are prepared only the image is transformed.
constexpr int64_t kFewestTilesPrepared = 4;
// With fewer channels the transforms are not worth their products (scripts/bench_ops.py).
constexpr int64_t kFewestChannels = 16;

inline bool fits_winograd(const Convolution& c, bool prepared) {
  if (std::min(c.channels, c.features) < kFewestChannels) return false;
  const int64_t tiles = c.images * ceil_div(c.axes[0].out, kTile) * ceil_div(c.axes[1].out, kTile);
  if (tiles < (prepared ? kFewestTilesPrepared : kFewestTiles)) return false;
  for (int axis = 0; axis < 3; ++axis) {
    const Axis& a = c.axes[axis];
    if (a.kernel != (axis < 2 ? 3 : 1) || a.stride != 1 || a.lhs_dilation != 1 || a.rhs_dilation != 1) return false;
  }
  return is_flat(c.axes[2]) && c.groups == 1 && c.channels % kLanes == 0 && c.features % kLanes == 0;
}

// The tiles of a convolution, in the order of images, lines and columns, and how many are computed together.
struct Tiles {
  int64_t high, wide, total, together;

  // Of few tiles each of the threads gets some.
  Tiles(const Convolution& c, int64_t least, int64_t threads = 1, int64_t bytes = 384 * 1024)
      : high(ceil_div(c.axes[0].out, kTile)), wide(ceil_div(c.axes[1].out, kTile)), total(c.images * high * wide) {
    const int64_t size = kPoints * kPoints * (c.channels + c.features) * sizeof(float);
    together = std::min(ceil_div(total, threads), std::max(least, bytes / size / kRows * kRows));
  }
  int64_t tasks() const { return ceil_div(total, together); }
};

// Numbers from one point to the next: an odd number of cache lines, since the points of a tile are written one after
// another, and an even number has them evict each other from the first cache.
constexpr int64_t apart(int64_t numbers) { return (ceil_div(numbers, 16) | 1) * 16; }

// The points of an input tile, [points][tiles][channels], from the image itself.
inline void input_points(const Convolution& c, const Tiles& tiles, const float* images, int64_t tile, float* points,
                         int64_t point_step) {
  const int64_t image = tile / (tiles.high * tiles.wide), line = tile / tiles.wide % tiles.high * kTile - c.axes[0].low,
                column = tile % tiles.wide * kTile - c.axes[1].low;
  const float* from = images + image * c.in_pixels() * c.channels;
  for (int64_t channel = 0; channel < c.channels; channel += kLanes) {
    Vec pixels[kPoints][kPoints], half[kPoints][kPoints], done[kPoints][kPoints];
    for (int i = 0; i < kPoints; ++i) {
      const bool inside = line + i >= 0 && line + i < c.axes[0].in;
      for (int j = 0; j < kPoints; ++j) {
        pixels[i][j] = inside && column + j >= 0 && column + j < c.axes[1].in
                           ? load(from + ((line + i) * c.axes[1].in + column + j) * c.channels + channel)
                           : Vec{};
      }
    }
    for (int j = 0; j < kPoints; ++j) transform_input(&pixels[0][j], kPoints, &half[0][j], kPoints);
    for (int i = 0; i < kPoints; ++i) transform_input(half[i], 1, done[i], 1);
    for (int i = 0; i < kPoints * kPoints; ++i) store(points + i * point_step + channel, (&done[0][0])[i]);
  }
}

// Numbers of one member's kernels at the points, [points, panels, channels, kColumns].
inline int64_t prepared_points(const Convolution& c) {
  return kPoints * kPoints * c.channels * round_up(c.features, kColumns);
}

template <typename Pool>
void prepare_points(Pool& pool, const Convolution& c, int64_t members, const float* rhs, int64_t rhs_step, float* out) {
  const int64_t size = prepared_points(c), point = size / (kPoints * kPoints);
  parallel_for(pool, members * c.channels, [&](int64_t task) {
    const int64_t matrix = task / c.channels, channel = task % c.channels;
    for (int64_t feature = 0; feature < c.features; feature += kLanes) {
      const float* from = rhs + matrix * rhs_step + channel * c.features + feature;
      float* to = out + matrix * size + feature / kColumns * c.channels * kColumns + channel * kColumns +
                  feature % kColumns;
      Vec half[kPoints][3];
      for (int i = 0; i < kPoints; ++i) {
        for (int j = 0; j < 3; ++j) {
          half[i][j] = Vec{};
          for (int k = 0; k < 3; ++k) half[i][j] += kKernel[i][k] * load(from + (k * 3 + j) * c.channels * c.features);
        }
      }
      for (int i = 0; i < kPoints; ++i) {
        for (int j = 0; j < kPoints; ++j) {
          Vec sum{};
          for (int k = 0; k < 3; ++k) sum += kKernel[j][k] * half[i][k];
          store(to + (i * kPoints + j) * point, sum);
        }
      }
    }
  });
}

template <typename Pool>
void convolve_winograd(Pool& pool, const Convolution& c, int64_t members, const float* lhs, int64_t lhs_step,
                       Weights rhs, float* out, const Finish& finish = {}) {
  const int64_t panels = ceil_div(c.features, kColumns), point = panels * c.channels * kColumns;
  const int64_t matrices = rhs.step ? members : 1, out_size = c.images * c.axes[0].out * c.axes[1].out * c.features;
  Memory<float> own(rhs.prepared ? 0 : matrices * prepared_points(c));
  if (!rhs.prepared) prepare_points(pool, c, matrices, rhs.values, rhs.step, own.data());
  const float* packed = rhs.prepared ? rhs.values : own.data();
  const int64_t operations = c.operations(members * c.images) / 4;
  const Tiles tiles(c, 2 * kRows, pool.worth(operations));
  const auto channels = multiples(c.channels, 1);
  share_out(pool, operations, members * tiles.tasks(), [&](int64_t task) {
    const int64_t member = task / tiles.tasks(), first = task % tiles.tasks() * tiles.together;
    const int64_t count = std::min(tiles.together, tiles.total - first);
    const int64_t in_step = apart(tiles.together * c.channels), out_step = apart(tiles.together * c.features);
    float* points = scratch(0, kPoints * kPoints * in_step);
    float* products = scratch(1, kPoints * kPoints * out_step);
    for (int64_t t = 0; t < count; ++t) {
      input_points(c, tiles, lhs + member * lhs_step, first + t, points + t * c.channels, in_step);
    }
    for (int64_t i = 0; i < kPoints * kPoints; ++i) {
      const float* matrix = packed + ((rhs.step ? member : 0) * kPoints * kPoints + i) * point;
      for (int64_t p = 0; p < panels; ++p) {
        each_tile(count, [&](int64_t t, int num_rows) {
          const float* rows[kRows];
          float* results[kRows];
          for (int m = 0; m < num_rows; ++m) {
            rows[m] = points + i * in_step + (t + m) * c.channels;
            results[m] = products + i * out_step + (t + m) * c.features + p * kColumns;
          }
          product(num_rows, rows, channels.data(), c.channels, matrix + p * c.channels * kColumns, kColumns, results,
                  std::min<int64_t>(kColumns, c.features - p * kColumns), false);
        });
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tile = first + t, image = tile / (tiles.high * tiles.wide);
      const int64_t line = tile / tiles.wide % tiles.high * kTile, column = tile % tiles.wide * kTile;
      const int64_t lines = std::min<int64_t>(kTile, c.axes[0].out - line);
      const int64_t columns = std::min<int64_t>(kTile, c.axes[1].out - column);
      float* to = out + member * out_size +
                  ((image * c.axes[0].out + line) * c.axes[1].out + column) * c.features;
      for (int64_t feature = 0; feature < c.features; feature += kLanes) {
        Vec from[kPoints][kPoints], half[kTile][kPoints], done[kTile][kTile];
        for (int i = 0; i < kPoints * kPoints; ++i) {
          (&from[0][0])[i] = load(products + i * out_step + t * c.features + feature);
        }
        for (int j = 0; j < kPoints; ++j) transform_output(&from[0][j], kPoints, &half[0][j], kPoints);
        for (int i = 0; i < kTile; ++i) transform_output(half[i], 1, done[i], 1);
        for (int i = 0; i < lines; ++i) {
          for (int j = 0; j < columns; ++j) {
            store(to + (i * c.axes[1].out + j) * c.features + feature, finish(done[i][j], feature));
          }
        }
      }
    }
  });
}

template <typename Pool>
void kernel_gradient_winograd(Pool& pool, const Convolution& c, int64_t members, const float* lhs, int64_t lhs_step,
                              const float* gradient, int64_t gradient_step, float* out) {
  const int64_t panels = ceil_div(c.features, kColumns), elements = kPoints * kPoints * c.channels * c.features;
  const Tiles tiles(c, 96);  // long sums: with 24 tiles it takes twice as long at 128 channels
  const int64_t parts = num_parts(tiles.tasks(), elements * members);
  const auto rows_of_tiles = multiples(tiles.together, c.channels);
  Memory<float> partial(members * parts * elements);
  parallel_for(pool, members * parts, [&](int64_t number) {
    const int64_t member = number / parts, part = number % parts;
    const int64_t in_step = apart(tiles.together * c.channels), panel = tiles.together * kColumns;
    const int64_t column_step = apart(panels * panel);
    float* sums = partial.data() + number * elements;
    float* points = scratch(0, kPoints * kPoints * in_step);
    float* columns = scratch(1, kPoints * kPoints * column_step);
    for (int64_t task = tiles.tasks() * part / parts; task < tiles.tasks() * (part + 1) / parts; ++task) {
      const int64_t first = task * tiles.together, count = std::min(tiles.together, tiles.total - first);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = first + t, image = tile / (tiles.high * tiles.wide);
        const int64_t line = tile / tiles.wide % tiles.high * kTile, column = tile % tiles.wide * kTile;
        input_points(c, tiles, lhs + member * lhs_step, tile, points + t * c.channels, in_step);
        const float* from = gradient + member * gradient_step +
                            ((image * c.axes[0].out + line) * c.axes[1].out + column) * c.features;
        for (int64_t feature = 0; feature < c.features; feature += kLanes) {
          Vec pixels[kTile][kTile], half[kPoints][kTile], done[kPoints][kPoints];
          for (int i = 0; i < kTile; ++i) {
            for (int j = 0; j < kTile; ++j) {
              pixels[i][j] = line + i < c.axes[0].out && column + j < c.axes[1].out
                                 ? load(from + (i * c.axes[1].out + j) * c.features + feature)
                                 : Vec{};
            }
          }
          for (int j = 0; j < kTile; ++j) transform_gradient(&pixels[0][j], kTile, &half[0][j], kTile);
          for (int i = 0; i < kPoints; ++i) transform_gradient(half[i], 1, done[i], 1);
          float* to = columns + feature / kColumns * panel + t * kColumns + feature % kColumns;
          for (int i = 0; i < kPoints * kPoints; ++i) store(to + i * column_step, (&done[0][0])[i]);
        }
      }
      for (int64_t i = 0; i < kPoints * kPoints; ++i) {
        for (int64_t p = 0; p < panels; ++p) {
          each_tile(c.channels, [&](int64_t channel, int num_rows) {
            const float* rows[kRows];
            float* results[kRows];
            for (int m = 0; m < num_rows; ++m) {
              rows[m] = points + i * in_step + channel + m;
              results[m] = sums + (i * c.channels + channel + m) * c.features + p * kColumns;
            }
            product(num_rows, rows, rows_of_tiles.data(), count, columns + i * column_step + p * panel, kColumns,
                    results, std::min<int64_t>(kColumns, c.features - p * kColumns), true);
          });
        }
      }
    }
  });
  // The parts are added first, into the first of them.
  parallel_for(pool, members * c.channels, [&](int64_t task) {
    const int64_t member = task / c.channels, channel = task % c.channels;
    for (int64_t feature = 0; feature < c.features; feature += kLanes) {
      Vec points[kPoints][kPoints], half[3][kPoints];
      for (int i = 0; i < kPoints * kPoints; ++i) {
        Vec sum{};
        for (int64_t part = 0; part < parts; ++part) {
          sum += load(partial.data() + (member * parts + part) * elements + (i * c.channels + channel) * c.features +
                      feature);
        }
        (&points[0][0])[i] = sum;
      }
      for (int k = 0; k < 3; ++k) {
        for (int j = 0; j < kPoints; ++j) {
          half[k][j] = Vec{};
          for (int i = 0; i < kPoints; ++i) half[k][j] += kKernel[i][k] * points[i][j];
        }
      }
      for (int k = 0; k < 3; ++k) {
        for (int l = 0; l < 3; ++l) {
          Vec sum{};
          for (int j = 0; j < kPoints; ++j) sum += kKernel[j][l] * half[k][j];
          store(out + ((member * 9 + k * 3 + l) * c.channels + channel) * c.features + feature, sum);
        }
      }
    }
  });
}

}  // namespace accelnet
