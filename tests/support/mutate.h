// Puts errors into bytes, to test code that reads what others have written.
#ifndef ATTND_TESTS_SUPPORT_MUTATE_H_
#define ATTND_TESTS_SUPPORT_MUTATE_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

namespace attnd {

// Makes one to three edits in `text`. One kind of edit appends the end of
// `good`.
inline void Mutate(const std::string& good, std::mt19937_64& rng,
                   std::string& text) {
  for (uint64_t n = 1 + rng() % 3; n > 0; --n) {
    const size_t at = rng() % text.size();
    switch (rng() % 4) {
      case 0:
        text[at] = static_cast<char>(rng());
        break;
      case 1:
        text.erase(at, 1 + rng() % 3);
        break;
      case 2:
        text.insert(text.begin() + static_cast<std::ptrdiff_t>(at),
                    static_cast<char>(rng()));
        break;
      default:
        text += good.substr(rng() % good.size());
        break;
    }
    if (text.empty()) text.push_back(10);
  }
}

}  // namespace attnd

#endif  // ATTND_TESTS_SUPPORT_MUTATE_H_
