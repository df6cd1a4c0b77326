// The threads that kernels share their tasks with: those of XLA's pool, or a crew of this library's own.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace accelnet {

namespace ffi = xla::ffi;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Threads that look for the next tasks a while before they sleep: waking one takes longer than a small layer does.
class Crew {
 public:
  explicit Crew(int64_t workers) {
    for (int64_t i = 0; i < workers; ++i) std::thread([this] { serve(); }).detach();
  }

  // Calls function(0), ..., function(count - 1) on the crew and on this thread. One thread at a time may call it.
  template <typename F>
  void run(int64_t count, const F& function) {
    if (count > kMost) {
      for (int64_t i = 0; i < count; ++i) function(i);
      return;
    }
    object_.store(&function);
    call_.store([](const void* object, int64_t i) { (*static_cast<const F*>(object))(i); });
    done_.store(0);
    const uint64_t epoch = state_.load() >> (2 * kBits);
    // The first task is this thread's own, so that of two threads each has the same ones every time, in its own cache.
    state_.store((epoch + 1) << (2 * kBits) | static_cast<uint64_t>(count) << kBits | 1);
    wake();
    function(0);
    done_.fetch_add(1, std::memory_order_release);
    take(state_.load());
    for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins) {
      spins > 2000 ? std::this_thread::yield() : pause();
    }
  }

  void wake() {
    if (sleeping_.load() == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    condition_.notify_all();
  }

 private:
  // The state in one word: how many jobs there have been, the tasks of this one, and the next of them. So a thread that
  // comes late finds out that there is nothing left, whatever the job is by then.
  static constexpr int kBits = 20;
  static constexpr int64_t kMost = (int64_t{1} << kBits) - 1024;
  static constexpr std::chrono::microseconds kAwake{200};

  static int64_t next(uint64_t state) { return state & ((uint64_t{1} << kBits) - 1); }
  static int64_t count(uint64_t state) { return state >> kBits & ((uint64_t{1} << kBits) - 1); }

  // Takes tasks until none is left; says whether there was one.
  bool take(uint64_t state) {
    bool any = false;
    while (next(state) < count(state)) {
      state = state_.fetch_add(1);
      if (next(state) >= count(state)) break;
      call_.load()(object_.load(), next(state));
      done_.fetch_add(1, std::memory_order_release);
      any = true;
    }
    return any;
  }

  void serve() {
    auto since = std::chrono::steady_clock::now();
    for (int64_t spins = 1;; ++spins) {
      if (take(state_.load())) {
        since = std::chrono::steady_clock::now();
        continue;
      }
      pause();
      if (spins % 64 || std::chrono::steady_clock::now() - since < kAwake) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1);
      condition_.wait(lock, [this] { return next(state_.load()) < count(state_.load()); });
      sleeping_.fetch_sub(1);
    }
  }

  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> done_{0}, sleeping_{0};
  std::atomic<const void*> object_{nullptr};
  std::atomic<void (*)(const void*, int64_t)> call_{nullptr};
  std::mutex mutex_;
  std::condition_variable condition_;
};

// What a kernel gets: how many threads there are, and below how many operations it is faster alone.
struct Threads {
  ffi::ThreadPool* pool;
  Crew* crew;
  int64_t count, alone;

  explicit Threads(ffi::ThreadPool& given) : pool(&given), crew(nullptr), count(given.num_threads()), alone(1 << 21) {}
  // Of a crew, or without one this thread alone.
  Threads(Crew* given, int64_t threads) : pool(nullptr), crew(given), count(given ? threads : 1), alone(1 << 18) {}

  int64_t num_threads() const { return count; }
  // The threads among which so many operations are worth sharing out.
  int64_t worth(int64_t operations) const { return operations < alone ? 1 : count; }
};

}  // namespace accelnet
