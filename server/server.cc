#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attnd/v1/attention.grpc.pb.h"
#include "base/status_macros.h"
#include "core/machine.h"
#include "cost/memory_shares.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/server_builder_option.h"
#include "grpcpp/resource_quota.h"
#include "server/access/access_control.h"
#include "server/access/server_credentials.h"
#include "server/admin/admin_site.h"
#include "server/admin/http_port.h"
#include "server/calls/decode_thread.h"
#include "server/calls/service_context.h"
#include "server/connections/acceptor.h"
#include "server/connections/connection_guard.h"
#include "server/connections/listen_address.h"
#include "server/connections/listener.h"
#include "server/connections/socket_hooks.h"
#include "server/load/load_meter.h"
#include "server/log/log_fields.h"
#include "server/memory/message_quota.h"
#include "server/metrics/metrics.h"
#include "server/process/log_sink.h"
#include "server/process/self_test.h"
#include "server/rpc/attention_service.h"
#include "server/rpc/unknown_methods.h"
#include "server/shared_memory/shared_region.h"
#include "server/shared_memory/shm_socket.h"
#include "server/tracing/span_exporter.h"
#include "server/version.h"
#include "spdlog/spdlog.h"
#include "wire/grpc/transport_arguments.h"

namespace attnd::server {
namespace {

// How long gRPC may take to send the last trailers of finished calls. After
// that, connections are closed.
constexpr std::chrono::milliseconds kFlushTime{250};

// How long gRPC may take to close the connections after that.
constexpr std::chrono::seconds kCloseTime{1};

// Every connection may have this many calls open, even if the server has little
// memory.
constexpr int64_t kMinStreams = 1024;

// The most calls that all connections together may have open before admission.
// They may take a quarter of the memory for arriving messages.
int64_t MaxOpenCalls(const MemoryShares& shares) {
  return std::max(shares.arriving_bytes / 4 / Connection::kCallBytes,
                  2 * kMinStreams);
}

// The most calls that one connection may have open. Where the memory allows it,
// this is more than --max-in-flight, so that a client that asks for too much is
// told to retry and does not wait without an answer. Proxies put the calls of
// many clients on one connection (Envoy, with the file in deploy/envoy, 256).
int MaxStreams(const ServerConfig& config, const MemoryShares& shares) {
  constexpr int64_t kMaxStreams = 1 << 20;
  return static_cast<int>(
      2 * std::clamp(config.max_in_flight, kMinStreams / 2,
                     std::min(MaxOpenCalls(shares) / 4, kMaxStreams / 2)));
}

// The most threads that reflection may use. Each of its streams has a thread,
// and gRPC refuses a stream that finds none.
constexpr int kReflectionThreads = 16;

std::chrono::nanoseconds Seconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(seconds));
}

ConnectionGuard::Options GuardOptions(const ServerConfig& config,
                                      const MemoryShares& shares,
                                      int64_t max_connections) {
  ConnectionGuard::Options options;
  options.limits.open_calls = 2 * MaxStreams(config, shares);
  options.max_connections = max_connections;
  options.all_open_calls = MaxOpenCalls(shares);
  options.all_resets.burst = static_cast<double>(options.all_open_calls);
  // One and a half times the timeout of calls, so that a call that can tell its
  // client ends first, with a status.
  options.idle_timeout = Seconds(config.stream_idle_timeout_s) * 3 / 2;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // The guard acts below the limit of the memory, because the kernel counts
  // more than the process has mapped, and would otherwise kill the process
  // first. Sanitizers take several times the memory of the program, so the
  // guard does not watch memory under them.
  options.memory_bytes = shares.total_bytes() / 16 * 15;
#endif
  return options;
}

class TransportOption final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments* arguments) override {
    SetTransportArguments(arguments);
  }
  void UpdatePlugins(
      std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>*) override {}
};

absl::StatusOr<std::vector<ListenAddress>> ParseAddresses(
    const std::vector<std::string>& texts) {
  std::vector<ListenAddress> addresses;
  for (const std::string& text : texts) {
    ATTND_ASSIGN_OR_RETURN(ListenAddress address, ListenAddress::Parse(text));
    addresses.push_back(std::move(address));
  }
  if (addresses.empty()) {
    return absl::InvalidArgumentError(
        "--listen: expected at least one address, got none");
  }
  return addresses;
}

// Logs what clients need to call the server.
void LogAccess(const AccessControl& access, const std::string& token_file) {
  if (access.has_tls()) {
    spdlog::info("connections over TCP need TLS{}",
                 access.needs_client_certificates()
                     ? ", and a certificate of the client"
                     : "");
  }
  if (access.needs_tokens()) {
    spdlog::info(
        "calls need a token: {} has {}", token_file,
        Counted(static_cast<int64_t>(access.tokens()->size()), "token"));
  }
}

std::shared_ptr<MessageQuota> MakeMessageQuota(
    const MemoryShares& shares,
    const std::shared_ptr<grpc::ResourceQuota>& grpc_quota) {
  return std::make_shared<MessageQuota>(
      MessageQuota::Limits{
          .budget_bytes = shares.budget_bytes,
          .arriving_bytes = shares.arriving_bytes,
          // malloc may keep what code and threads do not take.
          .kept_bytes = std::max<int64_t>(shares.own_bytes - kCodeBytes, 0)},
      [grpc_quota](int64_t bytes) {
        grpc_quota->Resize(static_cast<size_t>(bytes));
      });
}

}  // namespace

// The members are declared in the order in which they start, so that they are
// destroyed in the reverse order.
class Server::Impl {
 public:
  Impl(const ServerConfig& config, const MemoryShares& shares,
       std::unique_ptr<AccessControl> access)
      : config_(config),
        shares_(shares),
        access_(std::move(access)),
        engine_({.threads = config.threads}),
        quota_(std::make_shared<grpc::ResourceQuota>("attnd")),
        messages_(MakeMessageQuota(shares, quota_)),
        admission_(shares.budget_bytes, config.max_in_flight, &engine_.pool(),
                   messages_),
        regions_(config.shm_quota_bytes > 0 ? config.shm_quota_bytes
                                            : admission_.budget_bytes()),
        context_{engine_,
                 admission_,
                 config.max_message_bytes,
                 config.max_benchmark_vectors,
                 config.shm_socket.empty() ? nullptr : &regions_,
                 Seconds(config.stream_idle_timeout_s),
                 Seconds(config.max_benchmark_s),
                 &decoder_,
                 &load_,
                 access_.get(),
                 spans_.get()},
        service_(MakeAttentionService(context_, messages_)) {}

  ~Impl() {
    Abort();
    Drain();
  }

  absl::Status Start() {
    ATTND_ASSIGN_OR_RETURN(const std::vector<ListenAddress> addresses,
                           ParseAddresses(config_.listen));
    if (!config_.address_file.empty()) {
      ATTND_RETURN_IF_ERROR(AddressFile::Check(config_.address_file));
    }
    std::optional<Listener> admin;
    if (!config_.admin_listen.empty()) {
      ATTND_ASSIGN_OR_RETURN(admin, OpenAdminListener());
    }
    for (const ListenAddress& address : addresses) {
      if (!address.is_unix()) continue;
      ATTND_ASSIGN_OR_RETURN(
          UnixSocketGuard guard,
          UnixSocketGuard::Acquire(address.unix_path, "--listen"));
      guards_.push_back(std::move(guard));
    }
    // The self-test runs before clients can connect, because gRPC reports the
    // health of the service "" as SERVING as soon as they can.
    ATTND_RETURN_IF_ERROR(RunSelfTest(engine_));
    if (!config_.shm_socket.empty()) {
      ATTND_ASSIGN_OR_RETURN(
          shm_socket_,
          ShmSocket::Listen({.path = config_.shm_socket,
                             .mode = config_.socket_mode,
                             .allowed_uids = {config_.shm_allow_uids.begin(),
                                              config_.shm_allow_uids.end()}},
                            regions_));
      spdlog::info("clients can register shared memory on {}",
                   config_.shm_socket);
    }
    ATTND_RETURN_IF_ERROR(Serve(addresses));
    if (admin) ServeAdmin(*std::move(admin));
    LogAccess(*access_, config_.access.token_file);
    spdlog::info(
        "attnd {} serves on {}: isa {}, {}, memory budget {} bytes, "
        "messages up to {} bytes",
        kVersion, absl::StrJoin(addresses_, ", "),
        IsaName(engine_.machine().isa), Counted(engine_.threads(), "thread"),
        admission_.budget_bytes(), config_.max_message_bytes);
    if (config_.address_file.empty()) return absl::OkStatus();
    ATTND_ASSIGN_OR_RETURN(
        AddressFile file, AddressFile::Write(config_.address_file, addresses_));
    address_file_.emplace(std::move(file));
    return absl::OkStatus();
  }

  void ReloadFiles() {
    if (!access_->has_tls() && !access_->needs_tokens()) {
      spdlog::info(
          "signal 1 (SIGHUP) has no effect, because there are no files of "
          "certificates or tokens to read");
      return;
    }
    spdlog::info(
        "signal 1 (SIGHUP): reading the files of certificates and tokens "
        "again");
    access_->ReloadSoon();
  }

  void Announce() {
    if (!server_ || config_.drain_announce_s == 0) return;
    SetNotServingForGood(
        "the server is about to drain: it still takes calls, but use another "
        "server");
    spdlog::info("announcing the drain, which begins in {} s",
                 config_.drain_announce_s);
    std::unique_lock lock(abort_mutex_);
    abort_.wait_for(lock, Seconds(config_.drain_announce_s),
                    [this] { return aborted_; });
  }

  void Drain() {
    if (!server_) return;
    // The server refuses new calls before it reports NOT_SERVING, so that a
    // client that has read NOT_SERVING is refused because of the drain.
    admission_.Close();
    SetNotServingForGood("the server is draining and takes no new calls");
    // Readers of the log can rely on this line: the server admits no call after
    // it.
    spdlog::info("draining, with {} in progress",
                 Counted(admission_.usage().reservations, "call"));
    const bool idle = admission_.WaitIdle(Seconds(config_.drain_timeout_s));
    if (!idle) {
      spdlog::warn("cancelling {} that did not end in time",
                   Counted(admission_.usage().reservations, "call"));
    }
    acceptor_.reset();
    // gRPC would wait until each client has read what was sent to it.
    const auto flush_time = idle ? kFlushTime : kFlushTime * 0;
    guard_->EndAllAt(std::chrono::steady_clock::now() + flush_time +
                     kCloseTime);
    // Cancels the calls that still run, and returns when their reactors are
    // done.
    server_->Shutdown(std::chrono::system_clock::now() + flush_time);
    server_->Wait();
    server_.reset();
    handover_.reset();
    tls_handover_.reset();
    guard_->Stop();
    shm_socket_.reset();
    address_file_.reset();
    admin_.reset();
  }

  void Abort() {
    admission_.Interrupt();
    {
      const std::lock_guard lock(abort_mutex_);
      aborted_ = true;
    }
    abort_.notify_all();
  }

  const std::vector<std::string>& addresses() const { return addresses_; }
  const std::string& admin_address() const { return admin_address_; }
  Admission::Usage usage() const { return admission_.usage(); }
  int64_t connections() const { return guard_->connections(); }

 private:
  // Starts gRPC, which serves the connections that the acceptor hands to it.
  absl::Status Serve(const std::vector<ListenAddress>& addresses) {
    ATTND_RETURN_IF_ERROR(CheckSocketHooks());
    std::vector<Listener> listeners;
    for (const ListenAddress& address : addresses) {
      ATTND_ASSIGN_OR_RETURN(Listener listener,
                             Listener::Open(address, config_.socket_mode));
      listener.encrypted = access_->has_tls() && !address.is_unix();
      if (!address.is_unix() && !listener.IsOnlyLoopback()) {
        const std::string warning =
            ExposureWarning(listener.address.Text(), config_.access);
        if (!warning.empty()) spdlog::warn("{}", warning);
      }
      addresses_.push_back(listener.address.Text());
      listeners.push_back(std::move(listener));
    }
    ATTND_ASSIGN_OR_RETURN(
        const int64_t max_connections,
        MaxConnections(config_, shares_, RaiseDescriptorLimit()));
    // The guard starts before gRPC, because Drain needs it as soon as there is
    // a gRPC server, and because it throws if the system starts no more
    // threads.
    guard_ =
        ConnectionGuard::Start(GuardOptions(config_, shares_, max_connections));
    load_.BeginServing(max_connections,
                       [this] { return guard_->connections(); });
    if (!StartGrpc()) return absl::InternalError("gRPC did not start");
    server_->GetHealthCheckService()->SetServingStatus(
        v1::AttentionService::service_full_name(), true);
    acceptor_ = std::make_unique<Acceptor>(
        std::move(listeners), guard_,
        Acceptor::Callbacks{
            .serve = [this](int fd,
                            bool encrypted) { HandOver(fd, encrypted); },
            .all_accept_changed = [this](bool all) { SetServing(all); }});
    return absl::OkStatus();
  }

  void HandOver(int fd, bool encrypted) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters
        connection;
    connection.fd = fd;
    if (!encrypted) {
      handover_->HandleNewConnection(&connection);
      return;
    }
    const TlsHandover handover(fd);
    tls_handover_->HandleNewConnection(&connection);
  }

  // Sets the health of all services. Clients of every listener read it.
  void SetServing(bool serving) {
    const std::lock_guard lock(health_mutex_);
    if (ending_) return;
    why_not_ready_ =
        serving ? "" : "the server cannot accept connections on an address";
    server_->GetHealthCheckService()->SetServingStatus(serving);
  }

  // Makes the health of all services NOT_SERVING from now on.
  void SetNotServingForGood(std::string why) {
    const std::lock_guard lock(health_mutex_);
    ending_ = true;
    why_not_ready_ = std::move(why);
    server_->GetHealthCheckService()->Shutdown();
  }

  absl::StatusOr<Listener> OpenAdminListener() const {
    constexpr char kOption[] = "--admin-listen";
    ATTND_ASSIGN_OR_RETURN(
        const ListenAddress address,
        ListenAddress::ParseTcp(config_.admin_listen, kOption));
    absl::StatusOr<Listener> listener =
        Listener::Open(address, kOwnersSocketMode, kOption);
    if (listener.ok()) return listener;
    return absl::Status(
        listener.status().code(),
        absl::StrCat(listener.status().message(),
                     ": choose another address, or port 0 for any free port, "
                     "or an empty value for no admin port"));
  }

  void ServeAdmin(Listener listener) {
    admin_address_ = listener.address.Text();
    admin_site_.emplace(
        context_,
        AdminSite::Options{.why_not_ready =
                               [this] {
                                 const std::lock_guard lock(health_mutex_);
                                 return why_not_ready_;
                               },
                           .only_localhost = listener.IsOnlyLoopback(),
                           .own_host = listener.address.host,
                           .metrics = OtherMetrics()});
    admin_ = std::make_unique<HttpPort>(
        std::move(listener),
        HttpPort::Site{.answer =
                           [this](const HttpRequest& request) {
                             return admin_site_->Answer(request);
                           },
                       .refuse_unread =
                           [this](const HttpRequest& request) {
                             return admin_site_->RefuseUnread(request);
                           },
                       .problem = AdminSite::Refuse});
    spdlog::info("the admin port serves http://{}/", admin_address_);
  }

  // Returns the metrics that AdminSite cannot read from the ServiceContext.
  std::vector<MetricNumber> OtherMetrics() const {
    std::vector<MetricNumber> metrics = {
        {.name = "attnd_dropped_log_lines_total",
         .help = "Lines of the log that stderr did not accept in time.",
         .is_counter = true,
         .read = [] { return static_cast<double>(DroppedLogLines()); }}};
    if (access_->has_tls()) {
      metrics.push_back(
          {.name = "attnd_failed_tls_handshakes_total",
           .help =
               "Encrypted connections that ended before the client had sent "
               "anything that could be decrypted.",
           .is_counter = true,
           .read = [this] {
             return static_cast<double>(guard_->failed_handshakes());
           }});
      metrics.push_back(
          {.name = "attnd_tls_reload_failures_total",
           .help = "New certificates and keys that failed a check.",
           .is_counter = true,
           .read = [this] {
             return static_cast<double>(access_->state().tls_reload_failures);
           }});
      metrics.push_back(
          {.name = "attnd_tls_files_refused",
           .help = "1 while the files of certificates and keys have contents "
                   "that failed a check.",
           .read = [this] {
             return access_->state().tls_files_refused ? 1.0 : 0.0;
           }});
      metrics.push_back(
          {.name = "attnd_tls_not_after_seconds",
           .help = "When the certificate expires, in seconds since 1970.",
           .read = [this] {
             const auto not_after = access_->state().tls_not_after;
             return std::chrono::duration<double>(
                        not_after
                            .value_or(std::chrono::system_clock::time_point())
                            .time_since_epoch())
                 .count();
           }});
    }
    if (access_->needs_tokens()) {
      metrics.push_back(
          {.name = "attnd_token_reload_failures_total",
           .help = "New contents of --token-file that failed a check.",
           .is_counter = true,
           .read = [this] {
             return static_cast<double>(access_->state().token_reload_failures);
           }});
      metrics.push_back(
          {.name = "attnd_unauthenticated_calls_total",
           .help = "Calls that were refused because they had no valid token.",
           .is_counter = true,
           .read = [this] {
             return static_cast<double>(access_->refused_calls());
           }});
      metrics.push_back(
          {.name = "attnd_token_file_refused",
           .help = "1 while --token-file has contents that failed a check.",
           .read = [this] {
             return access_->state().token_file_refused ? 1.0 : 0.0;
           }});
    }
    return metrics;
  }

  bool StartGrpc() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(
        static_cast<int>(config_.max_message_bytes));
    builder.SetMaxSendMessageSize(static_cast<int>(config_.max_message_bytes));
    // gRPC decompresses a message before it checks the size, so a megabyte on
    // the wire could take a gigabyte of memory. Tensors of floats hardly
    // compress.
    for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
      builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
    }
    // gRPC receives all of a message before the server can refuse it, so the
    // quota bounds what all messages together may take.
    quota_->SetMaxThreads(kReflectionThreads);
    builder.SetResourceQuota(*quota_);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                               MaxStreams(config_, shares_));
    // A host that has failed sends nothing, so its calls would hold memory
    // forever. gRPC pings each client once a minute, and drops a connection
    // whose client does not answer. Without the second argument, gRPC stops
    // after two pings to a client to which it sends no data.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    // gRPC would end the connection of a client that pings often while its call
    // computes. Clients may do that; ConnectionLimits bounds the pings.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    // A client resolves the name of its server again only when a connection
    // ends.
    if (config_.max_connection_age_s > 0) {
      builder.AddChannelArgument(
          GRPC_ARG_MAX_CONNECTION_AGE_MS,
          static_cast<int>(config_.max_connection_age_s * 1000));
    }
    builder.SetOption(std::make_unique<TransportOption>());
    builder.RegisterService(service_.get());
    builder.RegisterCallbackGenericService(unknown_methods_.get());
    using ConnectionType =
        grpc::ServerBuilder::experimental_type::ExternalConnectionType;
    handover_ = builder.experimental().AddExternalConnectionAcceptor(
        ConnectionType::FROM_FD, MakeServerCredentials(*access_, false));
    if (access_->has_tls()) {
      tls_handover_ = builder.experimental().AddExternalConnectionAcceptor(
          ConnectionType::FROM_FD, MakeServerCredentials(*access_, true));
    }
    server_ = builder.BuildAndStart();
    return server_ != nullptr;
  }

  const ServerConfig config_;
  const MemoryShares shares_;
  const std::unique_ptr<AccessControl> access_;
  AttentionEngine engine_;
  const std::shared_ptr<grpc::ResourceQuota> quota_;
  const std::shared_ptr<MessageQuota> messages_;
  Admission admission_;
  RegionRegistry regions_;
  DecodeThread decoder_;
  LoadMeter load_;
  const std::unique_ptr<SpanExporter> spans_ =
      config_.trace_export == "otlp" ? std::make_unique<SpanExporter>()
                                     : nullptr;
  const ServiceContext context_;
  std::vector<UnixSocketGuard> guards_;
  std::unique_ptr<ShmSocket> shm_socket_;
  const std::unique_ptr<grpc::Service> service_;
  const std::unique_ptr<grpc::CallbackGenericService> unknown_methods_ =
      MakeUnknownMethods(access_.get(), spans_.get());
  std::vector<std::string> addresses_;
  // Where gRPC takes over connections in plain text, and encrypted ones.
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> handover_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> tls_handover_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex health_mutex_;
  // health_mutex_ guards the next two.
  bool ending_ = false;
  std::string why_not_ready_;  // empty while the health is SERVING
  std::mutex abort_mutex_;
  std::condition_variable abort_;
  bool aborted_ = false;  // abort_mutex_ guards it
  std::shared_ptr<ConnectionGuard> guard_;
  std::unique_ptr<Acceptor> acceptor_;
  std::optional<AddressFile> address_file_;
  std::string admin_address_;
  std::optional<AdminSite> admin_site_;
  std::unique_ptr<HttpPort> admin_;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerConfig& config) {
  try {
    ATTND_ASSIGN_OR_RETURN(std::unique_ptr<AccessControl> access,
                           AccessControl::Start(config.access));
    auto impl =
        std::make_unique<Impl>(config, SharesOf(config), std::move(access));
    ATTND_RETURN_IF_ERROR(impl->Start());
    return std::unique_ptr<Server>(new Server(std::move(impl)));
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--threads: the system cannot start another thread (", error.what(),
        "): ask for fewer threads, or raise the limit of processes (pids.max "
        "of the cgroup, ulimit -u)"));
  }
}

const std::vector<std::string>& Server::addresses() const {
  return impl_->addresses();
}

const std::string& Server::admin_address() const {
  return impl_->admin_address();
}

void Server::Announce() { impl_->Announce(); }
void Server::ReloadFiles() { impl_->ReloadFiles(); }
void Server::Drain() { impl_->Drain(); }
void Server::Abort() { impl_->Abort(); }
Admission::Usage Server::usage() const { return impl_->usage(); }
int64_t Server::connections() const { return impl_->connections(); }

}  // namespace attnd::server
