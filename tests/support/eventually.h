// Waits for a condition that another thread brings about.
#ifndef ATTND_TESTS_SUPPORT_EVENTUALLY_H_
#define ATTND_TESTS_SUPPORT_EVENTUALLY_H_

#include <chrono>
#include <functional>
#include <thread>

namespace attnd::testing {

// Returns true as soon as `holds` returns true, and false if this takes more
// than 30 s.
inline bool Eventually(const std::function<bool()>& holds) {
  const auto limit =
      std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace attnd::testing

#endif  // ATTND_TESTS_SUPPORT_EVENTUALLY_H_
