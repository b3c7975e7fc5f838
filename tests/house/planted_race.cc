// Has a handler with a deliberate data race. With --locked, the handler takes a
// lock. Thread sanitizer must tell the two apart, although gRPC between the
// threads is not instrumented.
#include "tests/house/planted_race.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <string_view>
#include <thread>

namespace attnd::house {
namespace {

bool locked = false;
std::mutex mutex;
int calls = 0;  // deliberately not atomic
std::atomic<int> handlers_running{0};

// Waits until both handlers run, so that they are in two threads. The memory
// order is relaxed, so that waiting does not synchronise the threads.
bool BothRun() {
  handlers_running.fetch_add(1, std::memory_order_relaxed);
  const auto limit =
      std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (handlers_running.load(std::memory_order_relaxed) < 2) {
    if (std::chrono::steady_clock::now() > limit) {
      return false;
    }
    std::this_thread::yield();
  }
  return true;
}

}  // namespace

void PlantedHandler() {
  if (!BothRun()) {
    std::fprintf(stderr, "the two handlers never ran at the same time\n");
    return;
  }
  if (locked) {
    const std::lock_guard lock(mutex);
    ++calls;
  } else {
    ++calls;
  }
}

}  // namespace attnd::house

int main(int argc, char** argv) {
  attnd::house::locked = argc > 1 && std::string_view(argv[1]) == "--locked";
  if (!attnd::house::CallTwiceAtOnce()) {
    std::fprintf(stderr, "a call failed\n");
    return 1;
  }
  return attnd::house::handlers_running.load() == 2 ? 0 : 1;
}
