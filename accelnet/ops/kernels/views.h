// The arrays that a kernel is called with.
#pragma once

#include "threads.h"

namespace accelnet {

using Numbers = ffi::Span<const int64_t>;

struct View {
  void* data;
  Numbers shape;
  ffi::DataType type;
  int64_t bytes;
};
using Views = std::vector<View>;

using Function = void (*)(Threads&, const Views& arguments, const Views& results, Numbers numbers);

inline View view_of(const ffi::AnyBuffer& buffer) {
  return {buffer.untyped_data(), buffer.dimensions(), buffer.element_type(), static_cast<int64_t>(buffer.size_bytes())};
}

template <Function kFunction>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results, Numbers numbers) {
  Views given, made;
  for (size_t i = 0; i < arguments.size(); ++i) given.push_back(view_of(*arguments.get<ffi::AnyBuffer>(i)));
  for (size_t i = 0; i < results.size(); ++i) made.push_back(view_of(**results.get<ffi::AnyBuffer>(i)));
  Threads threads(pool);
  kFunction(threads, given, made, numbers);
  return ffi::Error::Success();
}

}  // namespace accelnet
