#include "server/access/access_control.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/access/small_file.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

// How often the files are read. This is simpler than inotify, which does not
// see changes behind symbolic links (as Kubernetes makes them) or on network
// file systems, and reading a few kilobytes takes microseconds.
constexpr std::chrono::milliseconds kPeriod{500};

}  // namespace

std::string ExposureWarning(absl::string_view address,
                            const AccessOptions& options) {
  const bool encrypts = !options.tls.cert.empty();
  const bool checks_callers =
      !options.token_file.empty() || !options.tls.client_ca.empty();
  if (encrypts && checks_callers) return "";
  if (encrypts) {
    return absl::StrCat(
        "whoever can reach ", address,
        " can use this server: set --token-file or --tls-client-ca, unless a "
        "firewall or a proxy decides who can");
  }
  if (checks_callers) {
    return absl::StrCat(
        "tokens and tensors cross the network in plain text on ", address,
        ": set --tls-cert and --tls-key, unless a proxy or a service mesh "
        "encrypts them");
  }
  return absl::StrCat(
      "whoever can reach ", address,
      " can use this server, and nothing is encrypted: set --tls-cert and "
      "--tls-key, and --token-file or --tls-client-ca, or listen on 127.0.0.1, "
      "unless a proxy or a service mesh does this");
}

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Start(
    const AccessOptions& options) {
  if (options.tls.cert.empty() != options.tls.key.empty()) {
    return absl::InvalidArgumentError(
        options.tls.key.empty()
            ? "--tls-key: expected the file of the private key, because "
              "--tls-cert is set, got none"
            : "--tls-cert: expected the file of the certificate, because "
              "--tls-key is set, got none");
  }
  if (!options.tls.client_ca.empty() && options.tls.cert.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert: expected the file of the server's certificate, because "
        "--tls-client-ca is set, got none");
  }
  std::unique_ptr<AccessControl> control(new AccessControl(options));
  {
    const std::lock_guard lock(control->reload_mutex_);
    if (control->has_tls()) {
      ATTND_RETURN_IF_ERROR(control->ReloadTls().value_or(absl::OkStatus()));
    }
    if (control->needs_tokens()) {
      ATTND_RETURN_IF_ERROR(control->ReloadTokens().value_or(absl::OkStatus()));
    }
  }
  if (control->has_tls() || control->needs_tokens()) {
    control->thread_ = std::thread([raw = control.get()] { raw->Watch(); });
  }
  return control;
}

AccessControl::AccessControl(AccessOptions options)
    : options_(std::move(options)) {}

AccessControl::~AccessControl() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

AccessControl::NumberedTlsFiles AccessControl::tls_files() const {
  const std::lock_guard lock(mutex_);
  return tls_;
}

std::shared_ptr<const TokenList> AccessControl::tokens() const {
  const std::lock_guard lock(mutex_);
  return tokens_;
}

AccessControl::State AccessControl::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

void AccessControl::ReloadSoon() {
  {
    const std::lock_guard lock(mutex_);
    reload_soon_ = true;
  }
  wake_.notify_all();
}

void AccessControl::Reload() {
  const std::lock_guard lock(reload_mutex_);
  if (has_tls()) {
    if (const std::optional<absl::Status> status = ReloadTls()) {
      if (!status->ok()) {
        spdlog::error("{}; new connections go on with the certificate in use",
                      std::string(status->message()));
      }
      const std::lock_guard state_lock(mutex_);
      state_.tls_files_refused = !status->ok();
      state_.tls_reload_failures += status->ok() ? 0 : 1;
    }
  }
  if (needs_tokens()) {
    if (const std::optional<absl::Status> status = ReloadTokens()) {
      if (!status->ok()) {
        spdlog::error("{}; the tokens in use stay valid",
                      std::string(status->message()));
      }
      const std::lock_guard state_lock(mutex_);
      state_.token_file_refused = !status->ok();
      state_.token_reload_failures += status->ok() ? 0 : 1;
    }
  }
}

std::optional<absl::Status> AccessControl::ReloadTls() {
  absl::StatusOr<TlsFiles> read = ReadTlsFiles(options_.tls);
  if (read == last_tls_) return std::nullopt;
  // If somebody replaced all files while they were read, the first read has
  // parts of both versions, and the second one has only the new version.
  read = ReadTlsFiles(options_.tls);
  last_tls_ = read;
  ATTND_RETURN_IF_ERROR(read.status());
  const NumberedTlsFiles used = tls_files();
  if (used.files && *used.files == *read) return absl::OkStatus();
  ATTND_ASSIGN_OR_RETURN(const auto not_after,
                         CheckTlsFiles(*read, options_.tls));
  const std::lock_guard lock(mutex_);
  tls_ = {.files = std::make_shared<const TlsFiles>(*std::move(read)),
          .number = used.number + 1};
  state_.tls_not_after = not_after;
  if (used.files) {
    spdlog::info("new connections use the changed certificate of {}",
                 options_.tls.cert);
  }
  return absl::OkStatus();
}

std::optional<absl::Status> AccessControl::ReloadTokens() {
  absl::StatusOr<std::string> text =
      ReadSmallFile("--token-file", options_.token_file);
  if (text == last_tokens_) return std::nullopt;
  last_tokens_ = text;
  ATTND_RETURN_IF_ERROR(text.status());
  absl::StatusOr<TokenList> list = TokenList::Parse(*text);
  if (!list.ok()) {
    return FileError("--token-file", options_.token_file,
                     list.status().message());
  }
  const std::lock_guard lock(mutex_);
  const bool first = tokens_ == nullptr;
  tokens_ = std::make_shared<const TokenList>(*std::move(list));
  if (!first) {
    spdlog::info("new calls use the changed list in {} (tokens: {})",
                 options_.token_file, tokens_->size());
  }
  return absl::OkStatus();
}

void AccessControl::Watch() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait_for(lock, kPeriod, [&] { return stop_ || reload_soon_; });
    if (stop_) return;
    reload_soon_ = false;
    lock.unlock();
    Reload();
    lock.lock();
  }
}

}  // namespace attnd::server
