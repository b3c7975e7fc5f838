// Visits every option of base/attention_options.def.
#ifndef ATTND_BASE_ATTENTION_OPTIONS_H_
#define ATTND_BASE_ATTENTION_OPTIONS_H_

#include <vector>

namespace attnd {

// Calls `visit(name, member, help, values...)` for every option, in the order
// of the table. `member(options)` returns a reference to the option in an
// AttentionOptions of the client or of the server, so one visitor serves both:
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

// Says whether an option of this type is a list of numbers.
template <typename Option>
inline constexpr bool kIsList = false;
template <typename Number>
inline constexpr bool kIsList<std::vector<Number>> = true;

}  // namespace attnd

#endif  // ATTND_BASE_ATTENTION_OPTIONS_H_
