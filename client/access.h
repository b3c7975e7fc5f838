// What a client needs to enter a server that uses TLS or asks for tokens. Reads
// and checks ClientOptions::tls and the token, and explains why a server could
// not be entered. Does not use gRPC.
#ifndef ATTND_CLIENT_ACCESS_H_
#define ATTND_CLIENT_ACCESS_H_

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/attention_client.h"

namespace attnd::client {

// A bearer token, which may be in a file that changes. Thread-safe.
class BearerToken {
 public:
  // Reads the token from the file `path`. Returns INVALID_ARGUMENT if the file
  // has no valid token.
  static absl::StatusOr<std::shared_ptr<BearerToken>> FromFile(
      const std::string& path);
  static absl::StatusOr<std::shared_ptr<BearerToken>> FromText(
      const std::string& token);

  BearerToken(std::string path, absl::string_view token);

  // Returns the value for the header "authorization" of a call. Reads the file
  // again if that was last done more than a second ago. While the file has no
  // valid token, for example because it is being replaced, the old one stays.
  std::string Header();

 private:
  const std::string path_;  // empty if the token is not in a file
  std::mutex mutex_;
  std::string header_;
  std::chrono::steady_clock::time_point next_read_;
};

// The texts of the files that TlsOptions names.
struct TlsTexts {
  std::string ca;
  std::string cert;
  std::string key;
  std::string server_name;
};

struct Access {
  std::optional<TlsTexts> tls;         // if it is unset, there is no TLS
  std::shared_ptr<BearerToken> token;  // null if there is no token
  // Where `tls` came from, for errors: paths, but no contents.
  TlsOptions sources = {};

  // Reads and checks the files of `options`. Returns INVALID_ARGUMENT, which
  // names the member of ClientOptions, if one of them is wrong. Refuses to send
  // a token in plain text to another host, unless `options` allows that.
  static absl::StatusOr<Access> Load(const ClientOptions& options);

  // Returns what to check if gRPC could not connect and says `message`, as text
  // to append to it. Returns nothing if TLS or HTTP/1 has no part in the
  // failure.
  std::string HintFor(absl::string_view message) const;
};

// Returns whether `target`, a gRPC target, can only lead to this host: to a
// unix socket or to loopback addresses. Does not look up names.
bool StaysOnThisHost(absl::string_view target);

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ACCESS_H_
