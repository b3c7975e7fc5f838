// Reads the file of --token-file, and finds out whose token a caller has sent.
// Does not use gRPC.
#ifndef ATTND_SERVER_ACCESS_TOKEN_LIST_H_
#define ATTND_SERVER_ACCESS_TOKEN_LIST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attnd::server {

// Somebody who may call the server.
struct TokenOwner {
  std::string name;
  bool is_admin = false;
};

// The tokens that the server accepts. It has only their hashes, so whoever
// reads the file or the memory of the server cannot use them. Immutable.
class TokenList {
 public:
  // Parses the lines of a token file: "NAME SHA256 ROLE", where ROLE is user or
  // admin. Empty lines and lines that begin with # are ignored. Several lines
  // may have the same name, so that its owner can replace a token step by step.
  // INVALID_ARGUMENT says which line is wrong, but never repeats it, because
  // it could have a token in it by mistake.
  static absl::StatusOr<TokenList> Parse(absl::string_view text);

  // Returns the owner of `token`, or null if nobody has it. The time that this
  // takes does not depend on which of the tokens is given. The result is valid
  // as long as the list.
  const TokenOwner* Find(absl::string_view token) const;

  size_t size() const { return hashes_.size(); }

 private:
  using Sha256 = std::array<uint64_t, 4>;

  // Returns nothing if OpenSSL has no memory left.
  static std::optional<Sha256> HashOf(absl::string_view token);

  std::vector<Sha256> hashes_;
  std::vector<TokenOwner> owners_;  // in the order of hashes_
};

// Returns the token in `value`, the value of the metadata key "authorization",
// which has the form "Bearer TOKEN". Returns an empty text if the value has
// another form or if the token is longer than any that is accepted.
absl::string_view BearerToken(absl::string_view value);

}  // namespace attnd::server

#endif  // ATTND_SERVER_ACCESS_TOKEN_LIST_H_
