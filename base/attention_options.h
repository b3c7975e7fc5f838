// Visits every option that base/attention_options.def lists (scale, causal,
// bias and so on).
#ifndef ATTND_BASE_ATTENTION_OPTIONS_H_
#define ATTND_BASE_ATTENTION_OPTIONS_H_

#include <vector>

namespace attnd {

// Calls `visit(name, member, help, values...)` for every option, in the order
// of base/attention_options.def. `member(options)` returns a reference to that
// option in `options`, which is an AttentionOptions of the client library or of
// core/:
//   ForEachOption([&](const char* name, auto member, const auto&...) {
//     Print(name, member(options));
//   });
template <typename Visit>
void ForEachOption(const Visit& visit) {
#define ATTND_OPTION(type, name, initial, ...)                    \
  visit(                                                          \
      #name, [](auto& options) -> auto& { return options.name; }, \
      __VA_ARGS__);
#include "base/attention_options.def"
}

// Whether an option with the C++ type `Option` is a list of numbers.
template <typename Option>
inline constexpr bool kIsList = false;
template <typename Number>
inline constexpr bool kIsList<std::vector<Number>> = true;

}  // namespace attnd

#endif  // ATTND_BASE_ATTENTION_OPTIONS_H_
