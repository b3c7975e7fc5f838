#include "core/printable.h"

#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"

namespace attnd {
namespace {

// The character at the beginning of a text. Its size is 0 if the text does not
// begin with valid UTF-8.
struct Character {
  uint32_t code = 0;
  size_t size_bytes = 0;
};

uint32_t ByteAt(absl::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

Character FirstCharacter(absl::string_view text) {
  const uint32_t lead = ByteAt(text, 0);
  if (lead < 0x80) return {lead, 1};
  const size_t size_bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < size_bytes) return {};
  uint32_t code = lead & (0xffU >> (size_bytes + 1));
  for (size_t i = 1; i < size_bytes; ++i) {
    const uint32_t next = ByteAt(text, i);
    if ((next & 0xc0U) != 0x80) return {};
    code = code << 6 | (next & 0x3fU);
  }
  // Refuses an encoding that is not the shortest, half of a UTF-16 pair, and a
  // code beyond Unicode.
  constexpr uint32_t kMinCode[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kMinCode[size_bytes] || (code >= 0xd800 && code <= 0xdfff) ||
      code > 0x10ffff) {
    return {};
  }
  return {code, size_bytes};
}

bool IsPrintable(uint32_t code) {
  const bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
  const bool invisible = code == 0x61c || (code >= 0x200b && code <= 0x200f) ||
                         (code >= 0x2028 && code <= 0x202e) ||
                         (code >= 0x2060 && code <= 0x206f) || code == 0xfeff;
  return !control && !invisible;
}

}  // namespace

std::string Printable(absl::string_view text) {
  std::string printable;
  printable.reserve(text.size());
  while (!text.empty()) {
    const Character first = FirstCharacter(text);
    const size_t size_bytes = first.size_bytes > 0 ? first.size_bytes : 1;
    if (first.size_bytes > 0 && IsPrintable(first.code)) {
      printable.append(text.data(), size_bytes);
    } else {
      for (size_t i = 0; i < size_bytes; ++i) {
        absl::StrAppend(&printable, "\\x",
                        absl::Hex(ByteAt(text, i), absl::kZeroPad2));
      }
    }
    text.remove_prefix(size_bytes);
  }
  return printable;
}

}  // namespace attnd
