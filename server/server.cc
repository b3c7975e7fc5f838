#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attnd/v1/attention.grpc.pb.h"
#include "core/machine.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/server_builder_option.h"
#include "grpcpp/resource_quota.h"
#include "proto/transport_arguments.h"
#include "server/attention_service.h"
#include "server/listen_address.h"
#include "server/message_quota.h"
#include "server/self_test.h"
#include "server/service_context.h"
#include "server/shared_region.h"
#include "server/shm_socket.h"
#include "server/version.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

// For the last trailers of calls that have finished, after which connections
// are cut.
constexpr std::chrono::milliseconds kFlushTime{250};

// Calls that one connection may have open, of which each takes some KB before
// it is let in. Above what is let in at all, so that who asks for too much is
// told to retry, rather than kept waiting without a word; proxies put the calls
// of many clients on one connection (Envoy as it is deployed here 256).
int MaxStreams(const ServerConfig& config) {
  constexpr int64_t kFewest = 1024;
  constexpr int64_t kMost = 1 << 20;
  return static_cast<int>(
      2 * std::clamp(config.max_in_flight, kFewest / 2, kMost / 2));
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
    absl::StatusOr<ListenAddress> address = ListenAddress::Parse(text);
    if (!address.ok()) return address.status();
    addresses.push_back(*std::move(address));
  }
  if (addresses.empty()) {
    return absl::InvalidArgumentError(
        "--listen: expected an address, got none");
  }
  return addresses;
}

// A server's share of memory that code and threads take.
constexpr int64_t kCodeBytes = 64LL << 20;

std::shared_ptr<MessageQuota> MakeMessageQuota(
    const MemoryShares& shares,
    const std::shared_ptr<grpc::ResourceQuota>& of) {
  return std::make_shared<MessageQuota>(
      MessageQuota::Limits{
          .budget_bytes = shares.budget_bytes,
          .arriving_bytes = shares.arriving_bytes,
          .kept_bytes = std::max<int64_t>(shares.own_bytes - kCodeBytes, 0)},
      [of](int64_t bytes) { of->Resize(static_cast<size_t>(bytes)); });
}

}  // namespace

// Members stand in start order; the reverse shuts down.
class Server::Impl {
 public:
  Impl(const ServerConfig& config, const MemoryShares& shares)
      : config_(config),
        engine_({.threads = config.threads}),
        quota_(std::make_shared<grpc::ResourceQuota>("attnd")),
        messages_(MakeMessageQuota(shares, quota_)),
        admission_(shares.budget_bytes, config.max_in_flight, &engine_.pool(),
                   messages_),
        regions_(config.shm_quota_bytes > 0 ? config.shm_quota_bytes
                                            : admission_.budget_bytes()),
        context_{
            engine_,
            admission_,
            config.max_message_bytes,
            config.max_benchmark_vectors,
            config.shm_socket.empty() ? nullptr : &regions_,
            std::chrono::duration_cast<std::chrono::nanoseconds>(
                std::chrono::duration<double>(config.stream_idle_timeout_s))},
        service_(MakeAttentionService(context_, messages_)) {}

  ~Impl() {
    Abort();
    Drain();
  }

  absl::Status Start() {
    absl::StatusOr<std::vector<ListenAddress>> addresses =
        ParseAddresses(config_.listen);
    if (!addresses.ok()) return addresses.status();
    for (const ListenAddress& address : *addresses) {
      if (!address.is_unix()) continue;
      absl::StatusOr<UnixSocketGuard> guard =
          UnixSocketGuard::Acquire(address.unix_path, "--listen");
      if (!guard.ok()) return guard.status();
      guards_.push_back(*std::move(guard));
    }
    // Before anybody can connect: there is no moment in which the server
    // accepts, and the "" service, which gRPC starts as SERVING, lies.
    if (absl::Status status = RunSelfTest(engine_); !status.ok()) {
      return status;
    }
    if (!config_.shm_socket.empty()) {
      absl::StatusOr<std::unique_ptr<ShmSocket>> shm_socket =
          ShmSocket::Listen({.path = config_.shm_socket,
                             .allowed_uids = {config_.shm_allow_uids.begin(),
                                              config_.shm_allow_uids.end()}},
                            regions_);
      if (!shm_socket.ok()) return shm_socket.status();
      shm_socket_ = *std::move(shm_socket);
      spdlog::info("shared memory by {}", config_.shm_socket);
    }
    if (absl::Status status = Bind(*addresses); !status.ok()) return status;
    server_->GetHealthCheckService()->SetServingStatus(
        v1::AttentionService::service_full_name(), true);
    spdlog::info(
        "attnd {} serves on {}: isa {}, {} threads, memory budget {} bytes, "
        "messages up to {} bytes",
        kVersion, absl::StrJoin(addresses_, ", "),
        IsaName(engine_.machine().isa), engine_.threads(),
        admission_.budget_bytes(), config_.max_message_bytes);
    if (config_.address_file.empty()) return absl::OkStatus();
    absl::StatusOr<AddressFile> file =
        AddressFile::Write(config_.address_file, addresses_);
    if (!file.ok()) return file.status();
    address_file_.emplace(*std::move(file));
    return absl::OkStatus();
  }

  void Drain() {
    if (!server_) return;
    server_->GetHealthCheckService()->Shutdown();
    admission_.Close();
    // Who reads this line can rely on it: nothing new is admitted.
    spdlog::info("draining: {} calls still run",
                 admission_.usage().reservations);
    const bool idle = admission_.WaitIdle(
        std::chrono::duration_cast<std::chrono::nanoseconds>(
            std::chrono::duration<double>(config_.drain_timeout_s)));
    if (!idle) {
      spdlog::warn("{} calls still run and are cancelled",
                   admission_.usage().reservations);
    }
    // Cancels what is left and returns when its reactors are done.
    server_->Shutdown(std::chrono::system_clock::now() +
                      (idle ? kFlushTime : kFlushTime * 0));
    server_->Wait();
    server_.reset();
    shm_socket_.reset();
    address_file_.reset();
  }

  void Abort() { admission_.Interrupt(); }

  const std::vector<std::string>& addresses() const { return addresses_; }
  Admission::Usage usage() const { return admission_.usage(); }

 private:
  absl::Status Bind(std::vector<ListenAddress> addresses) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(
        static_cast<int>(config_.max_message_bytes));
    builder.SetMaxSendMessageSize(static_cast<int>(config_.max_message_bytes));
    // gRPC unpacks a message before it looks at its size, so a megabyte on the
    // wire could take a gigabyte here. Tensors of floats hardly compress.
    for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
      builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
    }
    // It also receives a message to its end before it does.
    builder.SetResourceQuota(*quota_);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                               MaxStreams(config_));
    // A host that is gone says nothing. A ping a minute finds out, and what its
    // calls held is given back; without the second, gRPC stops after two pings
    // to a client that it only listens to.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    // A client looks a name up again only when a connection ends.
    if (config_.max_connection_age_s > 0) {
      builder.AddChannelArgument(
          GRPC_ARG_MAX_CONNECTION_AGE_MS,
          static_cast<int>(config_.max_connection_age_s * 1000));
    }
    builder.SetOption(std::make_unique<TransportOption>());
    // Two servers on one port would share its calls without a word.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.RegisterService(service_.get());
    std::vector<int> ports(addresses.size(), 0);
    for (size_t i = 0; i < addresses.size(); ++i) {
      builder.AddListeningPort(addresses[i].Text(),
                               grpc::InsecureServerCredentials(), &ports[i]);
    }
    server_ = builder.BuildAndStart();
    for (size_t i = 0; i < addresses.size(); ++i) {
      if (ports[i] == 0) {
        server_.reset();
        return absl::UnavailableError(
            absl::StrCat("--listen: cannot listen on ", addresses[i].Text(),
                         ": it is in use, or not an address of this machine"));
      }
      addresses[i].port = ports[i];
      addresses_.push_back(addresses[i].Text());
    }
    if (!server_) return absl::InternalError("gRPC did not start");
    return absl::OkStatus();
  }

  const ServerConfig config_;
  AttentionEngine engine_;
  const std::shared_ptr<grpc::ResourceQuota> quota_;
  const std::shared_ptr<MessageQuota> messages_;
  Admission admission_;
  RegionRegistry regions_;
  const ServiceContext context_;
  std::vector<UnixSocketGuard> guards_;
  std::unique_ptr<ShmSocket> shm_socket_;
  const std::unique_ptr<grpc::Service> service_;
  std::vector<std::string> addresses_;
  std::unique_ptr<grpc::Server> server_;
  std::optional<AddressFile> address_file_;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerConfig& config) {
  try {
    auto impl = std::make_unique<Impl>(
        config, ShareMemory(config, AvailableMemoryBytes()));
    if (absl::Status status = impl->Start(); !status.ok()) return status;
    return std::unique_ptr<Server>(new Server(std::move(impl)));
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--threads: the system starts no more of them (", error.what(),
        "): ask for fewer, or raise the limit of processes (pids.max of the "
        "cgroup, ulimit -u)"));
  }
}

const std::vector<std::string>& Server::addresses() const {
  return impl_->addresses();
}

void Server::Drain() { impl_->Drain(); }
void Server::Abort() { impl_->Abort(); }
Admission::Usage Server::usage() const { return impl_->usage(); }

}  // namespace attnd::server
