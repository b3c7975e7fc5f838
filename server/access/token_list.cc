#include "server/access/token_list.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace attnd::server {
namespace {

// Each call compares its token with all hashes, so their number is limited.
constexpr size_t kMaxTokens = 1024;
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxTokenBytes = 4096;

// Names appear in the log and share a space with the names of certificates.
bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxNameBytes &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  absl::StrContains("._-@/:", c);
         });
}

bool IsSha256(absl::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isxdigit(static_cast<unsigned char>(c));
         });
}

absl::Status WrongLine(size_t number, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(
      "line ", number, ": ", why,
      " (a line is NAME SHA256 ROLE; it is not shown here, because "
      "it could contain a token)"));
}

}  // namespace

absl::StatusOr<TokenList> TokenList::Parse(absl::string_view text) {
  TokenList list;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() != 3) {
      return WrongLine(
          number, absl::StrCat("expected three words, got ", words.size()));
    }
    if (!IsName(words[0])) {
      return WrongLine(
          number,
          absl::StrCat("NAME: expected 1 to ", kMaxNameBytes,
                       " characters, each a letter, a digit or one of ._-@/:"));
    }
    if (!IsSha256(words[1])) {
      return WrongLine(number,
                       "SHA256: expected the SHA-256 of the token as 64 "
                       "hexadecimal digits, as sha256sum prints it");
    }
    if (words[2] != "user" && words[2] != "admin") {
      return WrongLine(number, "ROLE: expected user or admin");
    }
    Sha256 hash;
    // The functions of Abseil that read hexadecimal digits differ between its
    // versions.
    std::array<unsigned char, sizeof(hash)> bytes{};
    for (size_t i = 0; i < bytes.size(); ++i) {
      const absl::string_view digits = words[1].substr(2 * i, 2);
      std::from_chars(digits.data(), digits.data() + digits.size(), bytes[i],
                      16);
    }
    std::memcpy(hash.data(), bytes.data(), sizeof(hash));
    if (std::find(list.hashes_.begin(), list.hashes_.end(), hash) !=
        list.hashes_.end()) {
      return WrongLine(number,
                       "SHA256: an earlier line has the same one, but a token "
                       "can have only one owner");
    }
    if (list.size() == kMaxTokens) {
      return WrongLine(number, absl::StrCat("expected at most ", kMaxTokens,
                                            " tokens in the file"));
    }
    list.hashes_.push_back(hash);
    list.owners_.push_back(
        {.name = std::string(words[0]), .is_admin = words[2] == "admin"});
  }
  if (list.hashes_.empty()) {
    // A file that is being written is empty for a moment.
    return absl::InvalidArgumentError("expected at least one token, got none");
  }
  return list;
}

std::optional<TokenList::Sha256> TokenList::HashOf(absl::string_view token) {
  // OpenSSL looks the algorithm up, under a lock, if it is not fetched once.
  static const EVP_MD* const sha256 =
      EVP_MD_fetch(/*ctx=*/nullptr, "SHA256", /*properties=*/nullptr);
  thread_local const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>
      context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  Sha256 hash{};
  if (EVP_DigestInit_ex2(context.get(), sha256, /*params=*/nullptr) != 1 ||
      EVP_DigestUpdate(context.get(), token.data(), token.size()) != 1 ||
      EVP_DigestFinal_ex(context.get(),
                         reinterpret_cast<unsigned char*>(hash.data()),
                         /*s=*/nullptr) != 1) {
    return std::nullopt;
  }
  return hash;
}

// Compares with all hashes, without a branch that depends on them. OpenSSL's
// CRYPTO_memcmp does the same, but takes 60 us for 1024 hashes.
const TokenOwner* TokenList::Find(absl::string_view token) const {
  if (token.empty()) return nullptr;
  const std::optional<Sha256> hash = HashOf(token);
  if (!hash) return nullptr;
  uint64_t found = 0;  // the place of the owner, counted from 1
  for (uint64_t i = 0; i < hashes_.size(); ++i) {
    uint64_t different = 0;
    for (size_t word = 0; word < hash->size(); ++word) {
      different |= (*hash)[word] ^ hashes_[i][word];
    }
    // All bits are set if nothing is different, and none otherwise.
    const uint64_t same = ((different | (0 - different)) >> 63) - 1;
    found |= same & (i + 1);
  }
  return found == 0 ? nullptr : &owners_[found - 1];
}

absl::string_view BearerToken(absl::string_view value) {
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(value, kScheme)) return {};
  value.remove_prefix(kScheme.size());
  value = absl::StripAsciiWhitespace(value);
  return value.size() <= kMaxTokenBytes ? value : absl::string_view();
}

}  // namespace attnd::server
