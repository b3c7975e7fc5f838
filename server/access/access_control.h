// Decides who may connect to the server and call it: keeps the certificates of
// TLS and the list of tokens, and renews both when their files change. Does not
// use gRPC.
#ifndef ATTND_SERVER_ACCESS_ACCESS_CONTROL_H_
#define ATTND_SERVER_ACCESS_ACCESS_CONTROL_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/access/tls_files.h"
#include "server/access/token_list.h"

namespace attnd::server {

// The paths of the files, as the options give them. An empty path turns off
// what the file is for.
struct AccessOptions {
  TlsPaths tls;
  std::string token_file;
};

// Returns what to warn of if other hosts can reach `address`, a TCP address:
// that connections are not encrypted, or that callers are not checked. Empty if
// both are done.
std::string ExposureWarning(absl::string_view address,
                            const AccessOptions& options);

// Reads the files, and reads them again twice a second in a thread of its own.
// New contents are used only if they pass every check; until then, the server
// goes on with what it has. Thread-safe.
class AccessControl {
 public:
  // What operators watch.
  struct State {
    int64_t tls_reload_failures = 0;    // new contents that failed a check
    int64_t token_reload_failures = 0;  // the same for the file of tokens
    // Whether what the files have now failed a check.
    bool tls_files_refused = false;
    bool token_file_refused = false;
    // When the server's certificate expires, if it has one.
    std::optional<std::chrono::system_clock::time_point> tls_not_after;
  };

  // Certificates of TLS, with a number that rises whenever they are replaced.
  struct NumberedTlsFiles {
    std::shared_ptr<const TlsFiles> files;
    int64_t number = 0;
  };

  // Returns an error that names the option if a file cannot be read or has
  // wrong contents, or if an option is missing that another one needs.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Start(
      const AccessOptions& options);
  // Ends the thread.
  ~AccessControl();
  AccessControl(const AccessControl&) = delete;
  AccessControl& operator=(const AccessControl&) = delete;

  // Whether connections over TCP are encrypted.
  bool has_tls() const { return !options_.tls.cert.empty(); }
  // Whether clients that connect over TLS need a certificate.
  bool needs_client_certificates() const {
    return !options_.tls.client_ca.empty();
  }
  // Whether each call needs a token.
  bool needs_tokens() const { return !options_.token_file.empty(); }

  // The certificates for handshakes that begin now. Null without TLS.
  NumberedTlsFiles tls_files() const;
  // The tokens that are accepted now. Null unless calls need tokens.
  std::shared_ptr<const TokenList> tokens() const;

  State state() const;

  // Counts a call that was refused because it has no valid token.
  void CountRefusedCall() const {
    refused_calls_.fetch_add(1, std::memory_order_relaxed);
  }
  int64_t refused_calls() const {
    return refused_calls_.load(std::memory_order_relaxed);
  }

  // Reads the files again now, in the calling thread. That can take long, for
  // example if a file system does not answer.
  void Reload();
  // Makes the thread read the files again now, and returns at once.
  void ReloadSoon();

 private:
  explicit AccessControl(AccessOptions options);

  // Read the files. Return nothing if they are as they were the last time.
  // Otherwise use the new contents, or return why they cannot be used. The
  // caller must hold reload_mutex_.
  std::optional<absl::Status> ReloadTls();
  std::optional<absl::Status> ReloadTokens();
  void Watch();

  const AccessOptions options_;
  mutable std::atomic<int64_t> refused_calls_{0};

  std::mutex reload_mutex_;
  // What was read last, whether or not it could be used. reload_mutex_ guards
  // both.
  absl::StatusOr<TlsFiles> last_tls_;
  absl::StatusOr<std::string> last_tokens_;

  mutable std::mutex mutex_;
  // mutex_ guards the rest.
  NumberedTlsFiles tls_;
  std::shared_ptr<const TokenList> tokens_;
  State state_;
  bool stop_ = false;
  bool reload_soon_ = false;
  std::condition_variable wake_;

  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_ACCESS_ACCESS_CONTROL_H_
