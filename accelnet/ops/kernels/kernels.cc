// What XLA's CPU programs call: see accelnet/ops/kernels/__init__.py.
#include "chain.h"
#include "depthwise.h"
#include "matrices.h"
#include "pooling.h"
#include "recurrence.h"
#include "rounded_convolution.h"
#include "rows.h"
#include "rows_between.h"
#include "winograd.h"

namespace accelnet {

static const float* argument(const Views& arguments, size_t i) { return static_cast<const float*>(arguments[i].data); }
static float* result(const Views& results, size_t i) { return static_cast<float*>(results[i].data); }
static Numbers shape(const Views& views, size_t i) { return views[i].shape; }

static const int32_t* whole_numbers(const Views& arguments, size_t i) {
  return reinterpret_cast<const int32_t*>(argument(arguments, i));
}

static int64_t member_size(Numbers shape) {
  int64_t size = 1;
  for (size_t axis = 1; axis < shape.size(); ++axis) size *= shape[axis];
  return size;
}
// Elements between members of a population; 0 where they share the array.
static int64_t member_step(Numbers shape) { return shape[0] == 1 ? 0 : member_size(shape); }

// The programs of a convolution.
enum Program { kProduct, kDepthwise, kWinograd, kPlain };

// The only choice of one. Without kernels there is none: it is products of patches (patches.py).
static Program choose(const Convolution& c, bool may_round, bool prepared) {
  if (c.is_product()) return kProduct;
  return is_depthwise(c) ? kDepthwise : may_round && fits_winograd(c, prepared) ? kWinograd : kPlain;
}

// The product that a convolution of single pixels is.
static Matrices product_of(const Convolution& c, int64_t members) {
  return {members, c.images * c.in_pixels(), c.features, c.channels, false, false};
}

// Prepared weights are [members, numbers].
static Weights weights(const Views& arguments, size_t i) {
  const Numbers dimensions = shape(arguments, i);
  return {argument(arguments, i), member_step(dimensions), dimensions.size() == 2};
}

// What is done to the results of a product or a convolution in a chain: an argument behind the weights is a bias, and
// then the last number says whether what is negative becomes 0.
static Finish finish_of(const Views& arguments, Numbers numbers) {
  if (arguments.size() < 3) return {};
  return {argument(arguments, 2), numbers[numbers.size() - 1] != 0};
}

// Compilers work on two parts side by side; what no handler of a part calls costs it nothing.
void Convolve(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void Multiply(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void MaxPool(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void Add(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void Mean(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void Shortcut(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void Standardize(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void WholeNumbers(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void SwapAxes(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void Softmax(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
void LargestPlaces(Threads& pool, const Views& arguments, const Views& results, Numbers numbers);
#if ACCELNET_PART == 1
// Of convolutions: whether Winograd's rounding is allowed, then the geometry of `make_convolution`.
void Convolve(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers lhs = shape(arguments, 0), out = shape(results, 0);
  const Weights rhs = weights(arguments, 1);
  const Convolution c = make_convolution(lhs, out, {numbers.begin() + 1, numbers.size() - 1});
  const float* images = argument(arguments, 0);
  float* to = result(results, 0);
  const Finish finish = finish_of(arguments, numbers);
  switch (choose(c, numbers[0], rhs.prepared)) {
    case kProduct: multiply_matrices(pool, product_of(c, out[0]), images, member_step(lhs), rhs, to, finish); break;
    case kDepthwise: convolve_depthwise(pool, c, out[0], images, member_step(lhs), rhs, to, finish); break;
    case kWinograd: convolve_winograd(pool, c, out[0], images, member_step(lhs), rhs, to, finish); break;
    case kPlain: convolve(pool, c, out[0], images, member_step(lhs), rhs, to, finish); break;
  }
}

// Of products: whether the left and the right matrix are transposed, and whether they are rounded to bfloat16. The
// rows of a left matrix that is not transposed may have more axes than one.
void Multiply(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers a = shape(arguments, 0), out = shape(results, 0);
  const bool a_transposed = numbers[0], b_transposed = numbers[1];
  const Matrices s{out[0], out[1], out[2], a_transposed ? a[1] : member_size(a) / out[1], a_transposed, b_transposed};
  const Weights right = weights(arguments, 1);
#if defined(ACCELNET_BFLOAT16)
  if (numbers[2]) {
    multiply_pairs(pool, s, argument(arguments, 0), member_step(a), right.values, right.step, result(results, 0));
    return;
  }
#endif
  multiply_matrices(pool, s, argument(arguments, 0), member_step(a), right, result(results, 0),
                    finish_of(arguments, numbers));
}

// Of pooling: per axis the window, strides and padding in front. `large` is [members, images, in, channels].
static Pooling make_pooling(Numbers large, Numbers small, Numbers numbers) {
  Pooling p;
  p.images = large[1], p.channels = large[5];
  for (int axis = 0; axis < 3; ++axis) {
    p.axes[axis] = {large[2 + axis], small[2 + axis], numbers[axis], numbers[3 + axis], numbers[6 + axis]};
  }
  return p;
}

// Results: the maxima, and, if they are asked for, which tap has each, uint8.
void MaxPool(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers in = shape(arguments, 0);
  const Pooling p = make_pooling(in, shape(results, 0), numbers);
  uint8_t* marks = results.size() > 1 ? reinterpret_cast<uint8_t*>(result(results, 1)) : nullptr;
  max_pool(pool, p, in[0] * in[1], argument(arguments, 0), result(results, 0), marks);
}

// Arguments: which tap has each maximum, uint8, and the gradient of the maxima.
static void MaxPoolBackward(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers out = shape(results, 0);
  const Pooling p = make_pooling(out, shape(arguments, 0), numbers);
  const uint8_t* marks = reinterpret_cast<const uint8_t*>(argument(arguments, 0));
  const int64_t marks_step = member_step(shape(arguments, 0)), gradient_step = member_step(shape(arguments, 1));
  for (int64_t member = 0; member < out[0]; ++member) {
    max_pool_backward(pool, p, out[1], marks + member * marks_step, argument(arguments, 1) + member * gradient_step,
                      result(results, 0) + member * member_size(out));
  }
}

// out = a + b, of one size; the number says whether what is negative becomes 0.
void Add(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const float *a = argument(arguments, 0), *b = argument(arguments, 1);
  float* out = result(results, 0);
  const int64_t size = results[0].bytes / sizeof(float);
  const bool relu = numbers[0];
  constexpr int64_t block = 16384;
  share_out(pool, 4 * size, ceil_div(size, block), [&](int64_t task) {
    for (int64_t i = task * block; i < std::min(size, (task + 1) * block); ++i) {
      const float sum = a[i] + b[i];
      out[i] = relu && sum < 0 ? 0 : sum;
    }
  });
}

// Sums over the middle axis of [images, pixels, channels], divided by the number.
void Mean(Threads&, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers in = shape(arguments, 0);
  const float* from = argument(arguments, 0);
  float* out = result(results, 0);
  for (int64_t image = 0; image < in[0]; ++image, out += in[2]) {
    std::fill(out, out + in[2], 0.0f);
    for (int64_t pixel = 0; pixel < in[1]; ++pixel, from += in[2]) {
      for (int64_t i = 0; i < in[2]; ++i) out[i] += from[i];
    }
    for (int64_t i = 0; i < in[2]; ++i) out[i] /= numbers[0];
  }
}

// Every `numbers`-th line and column of [images, lines, columns, channels], with channels of zeros behind them.
void Shortcut(Threads&, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers in = shape(arguments, 0), to = shape(results, 0);
  const float* from = argument(arguments, 0);
  float* out = result(results, 0);
  for (int64_t image = 0; image < to[0]; ++image) {
    for (int64_t line = 0; line < to[1]; ++line) {
      for (int64_t column = 0; column < to[2]; ++column, out += to[3]) {
        const float* pixel = from + ((image * in[1] + line * numbers[0]) * in[2] + column * numbers[1]) * in[3];
        std::copy(pixel, pixel + in[3], out);
        std::fill(out + in[3], out + to[3], 0.0f);
      }
    }
  }
}

// Of [rows, features] of any type: shifts that are subtracted, and scales that multiply the rest, [1, features].
void Standardize(Threads& pool, const Views& arguments, const Views& results, Numbers) {
  const Numbers in = shape(arguments, 0);
  standardize(pool, arguments[0], in[0], in[1], argument(arguments, 1), argument(arguments, 2), result(results, 0));
}

// [1, count] of any type to int32.
void WholeNumbers(Threads&, const Views& arguments, const Views& results, Numbers) {
  to_whole_numbers(arguments[0], shape(arguments, 0)[1], reinterpret_cast<int32_t*>(result(results, 0)));
}

// [first, second, width] to [second, first, width], of any type of four bytes.
void SwapAxes(Threads& pool, const Views& arguments, const Views& results, Numbers) {
  const Numbers in = shape(arguments, 0);
  swap_axes(pool, argument(arguments, 0), in[0], in[1], in[2], result(results, 0));
}

// Of rows [rows, columns].
void Softmax(Threads& pool, const Views& arguments, const Views& results, Numbers) {
  const Numbers in = shape(arguments, 0);
  softmax(pool, argument(arguments, 0), in[0], in[1], result(results, 0));
}

// Of rows [rows, columns]; results are int32 [rows].
void LargestPlaces(Threads& pool, const Views& arguments, const Views& results, Numbers) {
  const Numbers in = shape(arguments, 0);
  largest_places(pool, argument(arguments, 0), in[0], in[1], reinterpret_cast<int32_t*>(result(results, 0)));
}
#endif

static void KernelGradient(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers lhs = shape(arguments, 0), gradient = shape(arguments, 1);
  const int64_t members = shape(results, 0)[0];
  const Convolution c = make_convolution(lhs, gradient, {numbers.begin() + 1, numbers.size() - 1});
  const float *images = argument(arguments, 0), *from = argument(arguments, 1);
  const int64_t images_step = member_step(lhs), from_step = member_step(gradient);
  float* to = result(results, 0);
  switch (choose(c, numbers[0], false)) {
    case kProduct: {
      const Matrices s{members, c.channels, c.features, c.images * c.in_pixels(), true, false};
      multiply_matrices(pool, s, images, images_step, {from, from_step, false}, to);
      break;
    }
    case kDepthwise:
      kernel_gradient_depthwise(pool, c, members, images, images_step, from, from_step, to);
      break;
    case kWinograd:
      kernel_gradient_winograd(pool, c, members, images, images_step, from, from_step, to);
      break;
    case kPlain:
      kernel_gradient(pool, c, members, images, images_step, from, from_step, to);
      break;
  }
}

// What weights are prepared for: the right matrix of a product (transposed?, rows, columns), or the kernels of a
// convolution (its images' and its result's sizes, six each, then its numbers).
struct Prepared {
  enum Kind { kMatrix, kKernels } kind;
  Matrices matrices{};
  Convolution convolution{};
  Program program = kProduct;

  explicit Prepared(Numbers numbers) : kind(static_cast<Kind>(numbers[0])) {
    const int64_t* given = numbers.begin() + 1;
    if (kind == kMatrix) {
      matrices = {1, 1, given[2], given[1], false, given[0] != 0};
      return;
    }
    convolution = make_convolution({given, 6}, {given + 6, 6}, {given + 13, numbers.size() - 14});
    program = choose(convolution, given[12], true);
    if (program == kProduct) matrices = product_of(convolution, 1);
  }
  // Numbers of a member, 0 where nothing is won.
  int64_t size() const {
    switch (program) {
      case kProduct: return prepared_size(matrices);
      case kDepthwise: return 0;
      case kWinograd: return prepared_points(convolution);
      case kPlain: return prepared_size(convolution, convolution.phases(convolution.axes[0].out));
    }
    return 0;
  }
};

// Arguments: weights [members, ...]. Result: [members, numbers].
static void Prepare(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Prepared prepared(numbers);
  const Weights given = weights(arguments, 0);
  const int64_t members = shape(results, 0)[0];
  const Convolution& c = prepared.convolution;
  float* to = result(results, 0);
  switch (prepared.program) {
    case kProduct:
      for (int64_t member = 0; member < members; ++member) {
        prepare_matrix(prepared.matrices, given.values + member * given.step, to + member * prepared.size());
      }
      break;
    case kDepthwise: break;
    case kWinograd: prepare_points(pool, c, members, given.values, given.step, to); break;
    case kPlain: prepare_kernels(pool, c, c.phases(c.axes[0].out), members, given.values, given.step, to); break;
  }
}

// Weights of 8 or 4 bits [panels, quads, 16, 4], and behind them their scales [columns].
static Packed packed(const Views& arguments, size_t i) {
  const bool halves = arguments[i].type == ffi::U8;
  const int64_t quads = shape(arguments, i)[2] * (halves ? 2 : 1);
  return {static_cast<const uint8_t*>(arguments[i].data), argument(arguments, i + 1), shape(arguments, i + 1)[1], quads,
          halves};
}

// Of products of rounded rows: the instructions, and in a chain whether what is negative becomes 0. Arguments: rows,
// weights, their scales, bias?.
static void MultiplyRoundedRows(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers x = shape(arguments, 0), out = shape(results, 0);
  const bool has_bias = arguments.size() > 3;
  const RoundedProduct product{out[0], out[1], x[2], numbers[0], packed(arguments, 1), member_step(x),
                               member_step(shape(arguments, 1)), member_step(shape(arguments, 2)),
                               has_bias ? member_step(shape(arguments, 3)) : 0, numbers.size() > 1 && numbers[1] != 0};
  multiply_rounded_rows(pool, product, argument(arguments, 0), has_bias ? argument(arguments, 3) : nullptr,
                        result(results, 0));
}

// Of convolutions of rounded images: the instructions, then the geometry of `make_convolution`, and in a chain whether
// what is negative becomes 0.
// Arguments: images, weights, their scales, bias?.
static void ConvolveRounded(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers images = shape(arguments, 0), out = shape(results, 0);
  const bool has_bias = arguments.size() > 3;
  const Convolution c = make_convolution(images, out, {numbers.begin() + 1, numbers.size() - 1});
  const RoundedConvolution convolution{c, out[0], numbers[0], packed(arguments, 1), member_step(images),
                                       member_step(shape(arguments, 1)), member_step(shape(arguments, 2)),
                                       has_bias ? member_step(shape(arguments, 3)) : 0,
                                       numbers.size() > 1 + kGeometry && numbers[1 + kGeometry] != 0};
  convolve_rounded(pool, convolution, argument(arguments, 0), has_bias ? argument(arguments, 3) : nullptr,
                   result(results, 0));
}

// Arguments: a table of any type, numbers of rows. Result: the rows.
static void TakeRows(Threads& pool, const Views& arguments, const Views& results, Numbers) {
  const Numbers table = shape(arguments, 0), numbers = shape(arguments, 1), out = shape(results, 0);
  const int64_t rows = table[1], count = member_size(numbers);
  const int64_t row_bytes = results[0].bytes / (out[0] * count);
  take_rows(pool, out[0], rows, row_bytes, static_cast<const char*>(arguments[0].data),
            table[0] == 1 ? 0 : rows * row_bytes, whole_numbers(arguments, 1), member_step(numbers), count,
            reinterpret_cast<char*>(result(results, 0)));
}

// The arguments in their order, as the functions of recurrence.h want them.
struct Reader {
  const Views& arguments;
  size_t next = 0;

  Array array() {
    const Numbers dimensions = shape(arguments, next);
    return {argument(arguments, next++), member_step(dimensions)};
  }
  Weights weights() { return accelnet::weights(arguments, next++); }
  Inputs inputs(bool are_tokens) {
    const Numbers table = shape(arguments, next);
    Inputs made{array()};
    if (are_tokens) {
      const Numbers tokens = shape(arguments, next);
      made.symbols = table[1], made.tokens = whole_numbers(arguments, next++), made.step = member_step(tokens);
    }
    return made;
  }
  Valid valid() {
    const Numbers dimensions = shape(arguments, next);
    return {reinterpret_cast<const bool*>(argument(arguments, next++)), member_step(dimensions)};
  }
};

// Calls function(kernel), whose products are of float32 or, `rounded`, of bfloat16.
template <typename F>
static void with_kernel(const Layer& layer, Weights kernel, bool transposed, bool rounded, const F& function) {
#if defined(ACCELNET_BFLOAT16)
  if (rounded) return function(Bfloat16Kernel(layer, {kernel.values, kernel.step}, transposed));
#endif
  function(FloatKernel(layer, kernel, transposed));
}

// Of recurrence: cell, reverse, whether what the backward pass wants is kept, whether there are tokens, a bias, and
// lengths, and whether products are of bfloat16.
// Arguments: projected [steps, batch, gates], or by symbol [symbols, gates] and tokens [steps, batch], first state, first memory of an LSTM, kernel, bias?, valid?.
// Results: hiddens [steps, batch, hidden], last state, last memory of an LSTM, and, if kept, the state before each step
// and what the cell saves.
static void Recur(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers out = shape(results, 0);
  const Layer layer{numbers[0], numbers[1], out[0], out[1], out[2], out[3]};
  Reader reader{arguments};
  const Inputs projected = reader.inputs(numbers[3]);
  const Array first = reader.array(), first_memory = layer.cell == kLstm ? reader.array() : Array{};
  const Weights kernel = reader.weights();
  const Array bias = numbers[4] ? reader.array() : Array{};
  const Valid valid = numbers[5] ? reader.valid() : Valid{};
  size_t next = 0;
  float *hiddens = result(results, next++), *last = result(results, next++);
  float* last_memory = layer.cell == kLstm ? result(results, next++) : nullptr;
  float *before = numbers[2] ? result(results, next++) : nullptr, *saved[5] = {};
  for (int64_t i = 0; numbers[2] && i < num_saved(layer.cell); ++i) saved[i] = result(results, next++);
  with_kernel(layer, kernel, false, numbers[6], [&](const auto& packed) {
    recur(pool, layer, projected, packed, bias, first, first_memory, valid, hiddens, last, last_memory, before, saved);
  });
}

// Of recurrence with a kernel of 8 or 4 bits: cell, reverse, the instructions, whether there are tokens, a bias, and
// lengths. Arguments and results are those of recurrence without what is kept; behind the kernel are its scales.
static void RecurRounded(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers out = shape(results, 0);
  const Layer layer{numbers[0], numbers[1], out[0], out[1], out[2], out[3]};
  Reader reader{arguments};
  const Inputs projected = reader.inputs(numbers[3]);
  const Array first = reader.array(), first_memory = layer.cell == kLstm ? reader.array() : Array{};
  const Numbers of_kernel = shape(arguments, reader.next);
  const Packed weights = packed(arguments, reader.next);
  const RoundedKernel kernel{layer.hidden, member_step(of_kernel), member_step(shape(arguments, reader.next + 1)), weights,
                             rounded_product(numbers[2], weights.halves), multiples(weights.quads, 4)};
  reader.next += 2;
  const Array bias = numbers[4] ? reader.array() : Array{};
  const Valid valid = numbers[5] ? reader.valid() : Valid{};
  float *hiddens = result(results, 0), *last = result(results, 1);
  float* last_memory = layer.cell == kLstm ? result(results, 2) : nullptr;
  recur(pool, layer, projected, kernel, bias, first, first_memory, valid, hiddens, last, last_memory, nullptr, nullptr);
}

// Of its gradient: cell, reverse, whether there are lengths, and whether products are of bfloat16.
// Arguments: dhiddens, dlast, dlast_memory of an LSTM, kernel, before, what the cell saved, valid?.
// Results: dprojected [steps, batch, gates], drecurrent of a GRU, dfirst, dfirst_memory of an LSTM.
static void RecurBackward(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  const Numbers of_hiddens = shape(arguments, 0), out = shape(results, 0);
  const Layer layer{numbers[0], numbers[1], out[0], out[1], out[2], of_hiddens[3]};
  Reader reader{arguments};
  const Array dhiddens = reader.array(), dlast = reader.array();
  const Array dlast_memory = layer.cell == kLstm ? reader.array() : Array{};
  const Weights kernel = reader.weights();
  const Array before = reader.array();
  Array saved[5];
  for (int64_t i = 0; i < num_saved(layer.cell); ++i) saved[i] = reader.array();
  const Valid valid = numbers[2] ? reader.valid() : Valid{};
  size_t next = 0;
  float* dprojected = result(results, next++);
  float* drecurrent = layer.cell == kGru ? result(results, next++) : nullptr;
  float* dfirst = result(results, next++);
  float* dfirst_memory = layer.cell == kLstm ? result(results, next++) : nullptr;
  with_kernel(layer, kernel, true, numbers[3], [&](const auto& transposed) {
    recur_backward(pool, layer, before, saved, transposed, dhiddens, dlast, dlast_memory, valid, dprojected, drecurrent,
                   dfirst, dfirst_memory);
  });
}

// What a chain may consist of, in the order of `LAYERS` in chain.py.
[[maybe_unused]] static constexpr Function kLayers[] = {
    Convolve,     Multiply,    Recur,        MaxPool,  Add,     Mean,          Shortcut, MultiplyRoundedRows, ConvolveRounded,
    RecurRounded, Standardize, WholeNumbers, SwapAxes, Softmax, LargestPlaces,
};

static void Chain(Threads& pool, const Views& arguments, const Views& results, Numbers numbers) {
  run_chain(kLayers, pool, arguments, results, numbers);
}

}  // namespace accelnet

#define ACCELNET_HANDLER(NAME, FUNCTION)                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, accelnet::handle<accelnet::FUNCTION>,       \
                                xla::ffi::Ffi::Bind()                             \
                                    .Ctx<xla::ffi::ThreadPool>()                  \
                                    .RemainingArgs()                              \
                                    .RemainingRets()                              \
                                    .Attr<xla::ffi::Span<const int64_t>>("numbers"))

#if ACCELNET_PART == 1
ACCELNET_HANDLER(accelnet_convolve, Convolve);
ACCELNET_HANDLER(accelnet_kernel_gradient, KernelGradient);
ACCELNET_HANDLER(accelnet_multiply, Multiply);
ACCELNET_HANDLER(accelnet_prepare, Prepare);
ACCELNET_HANDLER(accelnet_max_pool, MaxPool);
ACCELNET_HANDLER(accelnet_max_pool_backward, MaxPoolBackward);
#else
ACCELNET_HANDLER(accelnet_chain, Chain);
ACCELNET_HANDLER(accelnet_take_rows, TakeRows);
ACCELNET_HANDLER(accelnet_recur, Recur);
ACCELNET_HANDLER(accelnet_recur_backward, RecurBackward);
ACCELNET_HANDLER(accelnet_multiply_rounded, MultiplyRoundedRows);
ACCELNET_HANDLER(accelnet_convolve_rounded, ConvolveRounded);
ACCELNET_HANDLER(accelnet_recur_rounded, RecurRounded);
#endif

#if ACCELNET_PART == 1
extern "C" int64_t accelnet_prepared_size(const int64_t* numbers, size_t count) {
  return accelnet::Prepared({numbers, count}).size();
}

extern "C" int64_t accelnet_most_bytes() { return accelnet::usage().total(); }

// Whether this library multiplies numbers of bfloat16.
extern "C" bool accelnet_has_bfloat16() {
#if defined(ACCELNET_BFLOAT16)
  return true;
#else
  return false;
#endif
}
#endif

#if ACCELNET_PART == 2
// A chain for calls without XLA: its numbers, and of each argument its type and its data, null where calls bring it. Of
// several slices, it is that of one, and `steps` are the bytes of one in each array of a call.
extern "C" void* accelnet_chain_make(const int64_t* numbers, size_t count, const int64_t* types, void* const* data,
                                     size_t num_arguments, size_t num_results, int64_t num_threads, const int64_t* steps,
                                     int64_t slices) {
  accelnet::Views arguments;
  for (size_t i = 0; i < num_arguments; ++i) {
    arguments.push_back({data[i], {nullptr, 0}, static_cast<xla::ffi::DataType>(types[i]), data[i] != nullptr});
  }
  return new accelnet::HostChain(accelnet::kLayers, {numbers, count}, std::move(arguments), num_results, num_threads,
                                 steps, slices);
}

// The arrays of a call, as pointers to their data, or to where a pointer to their data lies `offset` bytes behind.
extern "C" void accelnet_chain_call(void* chain, int64_t offset, char* a, char* b, char* c, char* d, char* e, char* f) {
  void* arrays[] = {a, b, c, d, e, f};
  for (void*& array : arrays) {
    if (offset && array) array = *reinterpret_cast<void**>(static_cast<char*>(array) + offset);
  }
  static_cast<accelnet::HostChain*>(chain)->call(arrays);
}

extern "C" void accelnet_chain_free(void* chain) { delete static_cast<accelnet::HostChain*>(chain); }
#endif
