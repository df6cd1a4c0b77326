// What XLA's CPU programs call: see accelnet/ops/kernels/__init__.py.
#include "depthwise.h"
#include "matrices.h"
#include "recurrence.h"
#include "rounded_convolution.h"
#include "rows.h"
#include "winograd.h"

namespace accelnet {

using Arguments = ffi::RemainingArgs;
using Results = ffi::RemainingRets;

static const float* argument(const Arguments& arguments, size_t i) {
  return reinterpret_cast<const float*>(arguments.get<ffi::AnyBuffer>(i)->untyped_data());
}
static float* result(const Results& results, size_t i) {
  return reinterpret_cast<float*>((*results.get<ffi::AnyBuffer>(i))->untyped_data());
}
static Numbers shape(const Arguments& arguments, size_t i) { return arguments.get<ffi::AnyBuffer>(i)->dimensions(); }
static Numbers shape(const Results& results, size_t i) { return (*results.get<ffi::AnyBuffer>(i))->dimensions(); }

static const int32_t* whole_numbers(const Arguments& arguments, size_t i) {
  return reinterpret_cast<const int32_t*>(argument(arguments, i));
}

static int64_t member_size(Numbers shape) {
  int64_t size = 1;
  for (size_t axis = 1; axis < shape.size(); ++axis) size *= shape[axis];
  return size;
}
// Elements between members of a population; 0 where they share the array.
static int64_t member_step(Numbers shape) { return shape[0] == 1 ? 0 : member_size(shape); }

// The only choice of a convolution's program. Without kernels there is none: it is products of patches (patches.py).
template <typename Function>
static Function choose(const Convolution& c, bool may_round, Function depthwise, Function winograd, Function plain) {
  return is_depthwise(c) ? depthwise : may_round && fits_winograd(c) ? winograd : plain;
}

static ffi::Error multiply(ffi::ThreadPool& pool, const Matrices& s, const Arguments& arguments,
                           const Results& results) {
  multiply_matrices(pool, s, argument(arguments, 0), member_step(shape(arguments, 0)), argument(arguments, 1),
                    member_step(shape(arguments, 1)), result(results, 0));
  return ffi::Error::Success();
}

// Of convolutions: whether Winograd's rounding is allowed, then the geometry of `make_convolution`.
static ffi::Error Convolve(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
  using Pool = ffi::ThreadPool;
  const Numbers lhs = shape(arguments, 0), rhs = shape(arguments, 1), out = shape(results, 0);
  const Convolution c = make_convolution(lhs, rhs, out, {numbers.begin() + 1, numbers.size() - 1});
  if (c.is_product()) {
    return multiply(pool, {out[0], c.images * c.in_pixels(), c.features, c.channels, false, false}, arguments, results);
  }
  choose(c, numbers[0], convolve_depthwise<Pool>, convolve_winograd<Pool>, convolve<Pool>)(
      pool, c, out[0], argument(arguments, 0), member_step(lhs), argument(arguments, 1), member_step(rhs),
      result(results, 0));
  return ffi::Error::Success();
}

static ffi::Error KernelGradient(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
  using Pool = ffi::ThreadPool;
  const Numbers lhs = shape(arguments, 0), gradient = shape(arguments, 1), out = shape(results, 0);
  const Convolution c = make_convolution(lhs, out, gradient, {numbers.begin() + 1, numbers.size() - 1});
  if (c.is_product()) {
    return multiply(pool, {out[0], c.channels, c.features, c.images * c.in_pixels(), true, false}, arguments, results);
  }
  choose(c, numbers[0], kernel_gradient_depthwise<Pool>, kernel_gradient_winograd<Pool>, kernel_gradient<Pool>)(
      pool, c, out[0], argument(arguments, 0), member_step(lhs), argument(arguments, 1), member_step(gradient),
      result(results, 0));
  return ffi::Error::Success();
}

// Of products: whether the left and the right matrix are transposed, and whether they are rounded to bfloat16.
static ffi::Error Multiply(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
  const Numbers a = shape(arguments, 0), out = shape(results, 0);
  const bool a_transposed = numbers[0], b_transposed = numbers[1];
  const Matrices s{out[0], out[1], out[2], a[a_transposed ? 1 : 2], a_transposed, b_transposed};
#if defined(ACCELNET_BFLOAT16)
  if (numbers[2]) {
    multiply_pairs(pool, s, argument(arguments, 0), member_step(a), argument(arguments, 1),
                   member_step(shape(arguments, 1)), result(results, 0));
    return ffi::Error::Success();
  }
#endif
  return multiply(pool, s, arguments, results);
}

// Weights of 8 or 4 bits [panels, quads, 16, 4], and behind them their scales [columns].
static Packed packed(const Arguments& arguments, size_t i) {
  const auto weights = *arguments.get<ffi::AnyBuffer>(i);
  const bool halves = weights.element_type() == ffi::U8;
  const int64_t quads = weights.dimensions()[2] * (halves ? 2 : 1);
  return {reinterpret_cast<const uint8_t*>(weights.untyped_data()), argument(arguments, i + 1),
          shape(arguments, i + 1)[1], quads, halves};
}

// Of products of rounded rows: the instructions. Arguments: rows, weights, their scales, bias?.
static ffi::Error MultiplyRoundedRows(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
  const Numbers x = shape(arguments, 0), out = shape(results, 0);
  const bool has_bias = arguments.size() > 3;
  const RoundedProduct product{out[0], out[1], x[2], numbers[0], packed(arguments, 1), member_step(x),
                               member_step(shape(arguments, 1)), member_step(shape(arguments, 2)),
                               has_bias ? member_step(shape(arguments, 3)) : 0};
  multiply_rounded_rows(pool, product, argument(arguments, 0), has_bias ? argument(arguments, 3) : nullptr,
                        result(results, 0));
  return ffi::Error::Success();
}

// Of convolutions of rounded images: the instructions, the taps of each axis, then the geometry of `make_convolution`.
// Arguments: images, weights, their scales, bias?.
static ffi::Error ConvolveRounded(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
  const Numbers images = shape(arguments, 0), out = shape(results, 0);
  const int64_t kernel[6] = {1, numbers[1], numbers[2], numbers[3], images[5], out[5]};
  const bool has_bias = arguments.size() > 3;
  const Convolution c = make_convolution(images, {kernel, 6}, out, {numbers.begin() + 4, numbers.size() - 4});
  const RoundedConvolution convolution{c, out[0], numbers[0], packed(arguments, 1), member_step(images),
                                       member_step(shape(arguments, 1)), member_step(shape(arguments, 2)),
                                       has_bias ? member_step(shape(arguments, 3)) : 0};
  convolve_rounded(pool, convolution, argument(arguments, 0), has_bias ? argument(arguments, 3) : nullptr,
                   result(results, 0));
  return ffi::Error::Success();
}

// Arguments: a table of any type, numbers of rows. Result: the rows.
static ffi::Error TakeRows(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers) {
  const auto table = *arguments.get<ffi::AnyBuffer>(0);
  const Numbers numbers = shape(arguments, 1), out = shape(results, 0);
  const int64_t rows = table.dimensions()[1], count = member_size(numbers);
  const int64_t row_bytes = (*results.get<ffi::AnyBuffer>(0))->size_bytes() / (out[0] * count);
  take_rows(pool, out[0], rows, row_bytes, reinterpret_cast<const char*>(table.untyped_data()),
            table.dimensions()[0] == 1 ? 0 : rows * row_bytes, whole_numbers(arguments, 1), member_step(numbers), count,
            reinterpret_cast<char*>(result(results, 0)));
  return ffi::Error::Success();
}

// The arguments in their order, as the functions of recurrence.h want them.
struct Reader {
  const Arguments& arguments;
  size_t next = 0;

  Array array() {
    const Numbers dimensions = shape(arguments, next);
    return {argument(arguments, next++), member_step(dimensions)};
  }
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
static void with_kernel(const Layer& layer, Array kernel, bool transposed, bool rounded, const F& function) {
#if defined(ACCELNET_BFLOAT16)
  if (rounded) return function(Bfloat16Kernel(layer, kernel, transposed));
#endif
  function(FloatKernel(layer, kernel, transposed));
}

// Of recurrence: cell, reverse, whether what the backward pass wants is kept, whether there are tokens, a bias, and
// lengths, and whether products are of bfloat16.
// Arguments: projected [steps, batch, gates], or by symbol [symbols, gates] and tokens [steps, batch], first state, first memory of an LSTM, kernel, bias?, valid?.
// Results: hiddens [steps, batch, hidden], last state, last memory of an LSTM, and, if kept, the state before each step
// and what the cell saves.
static ffi::Error Recur(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
  const Numbers out = shape(results, 0);
  const Layer layer{numbers[0], numbers[1], out[0], out[1], out[2], out[3]};
  Reader reader{arguments};
  const Inputs projected = reader.inputs(numbers[3]);
  const Array first = reader.array(), first_memory = layer.cell == kLstm ? reader.array() : Array{};
  const Array kernel = reader.array();
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
  return ffi::Error::Success();
}

// Of recurrence with a kernel of 8 or 4 bits: cell, reverse, the instructions, whether there are tokens, a bias, and
// lengths. Arguments and results are those of recurrence without what is kept; behind the kernel are its scales.
static ffi::Error RecurRounded(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
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
  return ffi::Error::Success();
}

// Of its gradient: cell, reverse, whether there are lengths, and whether products are of bfloat16.
// Arguments: dhiddens, dlast, dlast_memory of an LSTM, kernel, before, what the cell saved, valid?.
// Results: dprojected [steps, batch, gates], drecurrent of a GRU, dfirst, dfirst_memory of an LSTM.
static ffi::Error RecurBackward(ffi::ThreadPool pool, Arguments arguments, Results results, Numbers numbers) {
  const Numbers of_hiddens = shape(arguments, 0), out = shape(results, 0);
  const Layer layer{numbers[0], numbers[1], out[0], out[1], out[2], of_hiddens[3]};
  Reader reader{arguments};
  const Array dhiddens = reader.array(), dlast = reader.array();
  const Array dlast_memory = layer.cell == kLstm ? reader.array() : Array{};
  const Array kernel = reader.array(), before = reader.array();
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
  return ffi::Error::Success();
}

}  // namespace accelnet

#define ACCELNET_HANDLER(NAME, FUNCTION)                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, accelnet::FUNCTION,                         \
                                xla::ffi::Ffi::Bind()                             \
                                    .Ctx<xla::ffi::ThreadPool>()                  \
                                    .RemainingArgs()                              \
                                    .RemainingRets()                              \
                                    .Attr<xla::ffi::Span<const int64_t>>("numbers"))

// Compilers work on the parts side by side; what no handler of a part calls costs it nothing.
#if ACCELNET_PART == 1
ACCELNET_HANDLER(accelnet_convolve, Convolve);
ACCELNET_HANDLER(accelnet_kernel_gradient, KernelGradient);
#else
ACCELNET_HANDLER(accelnet_multiply, Multiply);
ACCELNET_HANDLER(accelnet_take_rows, TakeRows);
ACCELNET_HANDLER(accelnet_recur, Recur);
ACCELNET_HANDLER(accelnet_recur_backward, RecurBackward);
ACCELNET_HANDLER(accelnet_multiply_rounded, MultiplyRoundedRows);
ACCELNET_HANDLER(accelnet_convolve_rounded, ConvolveRounded);
ACCELNET_HANDLER(accelnet_recur_rounded, RecurRounded);
#endif

#if ACCELNET_PART == 1
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
