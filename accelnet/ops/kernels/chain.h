// Layers one after the other in one call: what lies between them stays in the caches, and its threads do not sleep.
#pragma once

#include <unistd.h>

#include "product.h"
#include "views.h"

namespace accelnet {

// A chain is told by numbers: those of the memory between its layers, in floats; how many layers; and of each layer its
// kind, its arguments, its results and its own numbers, each behind their count. An array is where it lies (an argument
// of the chain, a result, or the memory between), which or at which float, and its shape behind its count of axes.
class ChainPlan {
 public:
  ChainPlan(const Function* kinds, Numbers numbers, const Views& arguments)
      : numbers_(numbers.begin(), numbers.end()), between_(numbers_[0]) {
    const int64_t* at = numbers_.data() + 1;
    layers_.resize(*at++);
    for (Layer& layer : layers_) {
      layer.function = kinds[*at++];
      for (Arrays* arrays : {&layer.arguments, &layer.results}) {
        for (int64_t left = *at++; left > 0; --left) {
          const Place place{at[0], at[1]};
          const Numbers shape(at + 3, at[2]);
          int64_t size = 1;
          for (const int64_t axis : shape) size *= axis;
          const auto type = place.kind == kArgument ? arguments[place.index].type : ffi::F32;
          arrays->places.push_back(place);
          arrays->views.push_back({nullptr, shape, type, size * static_cast<int64_t>(sizeof(float))});
          at += 3 + shape.size();
        }
      }
      layer.numbers = Numbers(at + 1, *at);
      at += 1 + *at;
    }
  }

  bool is_of(Numbers numbers) const {
    return numbers.size() == numbers_.size() && std::equal(numbers.begin(), numbers.end(), numbers_.begin());
  }

  void run(Threads& threads, const Views& arguments, const Views& results) {
    for (Layer& layer : layers_) {
      for (Arrays* arrays : {&layer.arguments, &layer.results}) {
        for (size_t i = 0; i < arrays->places.size(); ++i) {
          const auto [kind, index] = arrays->places[i];
          arrays->views[i].data = kind == kArgument ? arguments[index].data
                                  : kind == kResult ? results[index].data
                                                    : between_.data() + index;
        }
      }
      layer.function(threads, layer.arguments.views, layer.results.views, layer.numbers);
    }
  }

 private:
  enum Kind { kArgument, kResult, kBetween };
  struct Place {
    int64_t kind, index;
  };
  struct Arrays {
    std::vector<Place> places;
    Views views;
  };
  struct Layer {
    Function function;
    Arrays arguments, results;
    Numbers numbers;
  };

  const std::vector<int64_t> numbers_;
  Memory<float> between_;
  std::vector<Layer> layers_;
};

// The crew of this process, whose threads end with it. A child after a fork has none of them, and makes its own.
struct CrewOfProcess {
  std::mutex mutex;
  Crew* crew = nullptr;
  int64_t process = 0;

  Crew* get(int64_t threads) {
    if (process != getpid()) crew = new Crew(threads - 1), process = getpid();
    return crew;
  }

  static CrewOfProcess& own() {
    static CrewOfProcess own;
    return own;
  }
};

// Calls function(threads) with the crew. Who comes while another thread's chain runs has its own thread alone.
template <typename F>
void with_crew(int64_t num_threads, const F& function) {
  CrewOfProcess& own = CrewOfProcess::own();
  std::unique_lock<std::mutex> lock(own.mutex, std::try_to_lock);
  Threads threads(lock.owns_lock() && num_threads > 1 ? own.get(num_threads) : nullptr, num_threads);
  function(threads);
}

inline void run_chain(const Function* kinds, Threads& pool, const Views& arguments, const Views& results,
                      Numbers numbers) {
  static thread_local std::vector<std::unique_ptr<ChainPlan>> plans;
  auto plan = std::find_if(plans.begin(), plans.end(), [&](const auto& one) { return one->is_of(numbers); });
  if (plan == plans.end()) {
    plans.push_back(std::make_unique<ChainPlan>(kinds, numbers, arguments));
    plan = plans.end() - 1;
  }
  with_crew(pool.num_threads(), [&](Threads& threads) { (*plan)->run(threads, arguments, results); });
}

// A chain that is called without XLA, by any threads at the same time. Arguments that have no data yet come with every
// call, in their order, and behind them the results. Of several slices, each is a thread's own, and `steps` are the
// bytes of one in each array of a call.
class HostChain {
 public:
  HostChain(const Function* kinds, Numbers numbers, Views arguments, int64_t num_results, int64_t num_threads,
            const int64_t* steps, int64_t slices)
      : kinds_(kinds), numbers_(numbers.begin(), numbers.end()), arguments_(std::move(arguments)),
        num_results_(num_results), num_threads_(num_threads), slices_(slices) {
    int64_t arrays = num_results;
    for (const View& view : arguments_) arrays += view.bytes == 0;
    steps_.assign(arrays, 0);
    if (slices > 1) std::copy(steps, steps + arrays, steps_.begin());
  }

  ~HostChain() { delete pool_.load(); }

  void call(void* const* arrays) {
    Pool& pool = own_pool();
    with_crew(num_threads_, [&](Threads& threads) {
      if (slices_ == 1) return call_slice(pool, threads, arrays, 0);
      parallel_for(threads, slices_, [&](int64_t slice) {
        Threads alone(nullptr, 1);
        call_slice(pool, alone, arrays, slice);
      });
    });
  }

 private:
  struct Call;
  // Calls that are over, for those to come. A child after a fork has its own: a thread that it lacks may hold the lock.
  struct Pool {
    const int64_t process;
    std::mutex mutex;
    std::vector<std::unique_ptr<Call>> free;

    explicit Pool(int64_t process) : process(process) {}
  };

  Pool& own_pool() {
    Pool* pool = pool_.load();
    if (pool->process == getpid()) return *pool;
    Pool* own = new Pool(getpid());
    if (pool_.compare_exchange_strong(pool, own)) return *own;
    delete own;
    return *pool;
  }

  void call_slice(Pool& pool, Threads& threads, void* const* arrays, int64_t slice) {
    std::unique_ptr<Call> call = take(pool);
    auto step = steps_.begin();
    const auto next = [&] { return static_cast<char*>(*arrays++) + slice * *step++; };
    for (View& view : call->arguments) view.data = view.bytes ? view.data : next();
    for (View& view : call->results) view.data = next();
    call->plan.run(threads, call->arguments, call->results);
    std::lock_guard<std::mutex> lock(pool.mutex);
    pool.free.push_back(std::move(call));
  }

  // What one call at a time has.
  struct Call {
    ChainPlan plan;
    Views arguments, results;

    explicit Call(const HostChain& chain)
        : plan(chain.kinds_, {chain.numbers_.data(), chain.numbers_.size()}, chain.arguments_),
          arguments(chain.arguments_), results(chain.num_results_, View{nullptr, {nullptr, 0}, ffi::F32, 0}) {}
  };

  std::unique_ptr<Call> take(Pool& pool) {
    {
      std::lock_guard<std::mutex> lock(pool.mutex);
      if (!pool.free.empty()) {
        std::unique_ptr<Call> call = std::move(pool.free.back());
        pool.free.pop_back();
        return call;
      }
    }
    return std::make_unique<Call>(*this);
  }

  const Function* kinds_;
  const std::vector<int64_t> numbers_;
  const Views arguments_;
  const int64_t num_results_, num_threads_, slices_;
  std::vector<int64_t> steps_;
  std::atomic<Pool*> pool_{new Pool(getpid())};
};

}  // namespace accelnet
