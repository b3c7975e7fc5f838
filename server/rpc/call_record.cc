#include "server/rpc/call_record.h"

#include <cstddef>
#include <iterator>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/printable.h"
#include "server/access/caller.h"
#include "server/log/log_fields.h"
#include "server/rpc/rpc_adapter.h"
#include "server/status/status_convert.h"
#include "spdlog/spdlog.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

constexpr char kRequestId[] = "attnd-request-id";
constexpr char kService[] = "attnd.v1.AttentionService";
constexpr size_t kMaxNameBytes = 256;

// A random number that distinguishes this process from others.
uint64_t ProcessNumber() {
  static const uint64_t number = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  return number;
}

uint64_t NextNumber() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

// Returns a span id for the call with this number. Calls have different ids,
// which look random, because this is the finalizer of SplitMix64, a one-to-one
// function.
std::string SpanId(uint64_t number) {
  uint64_t id = ProcessNumber() + number;
  id = (id ^ id >> 30) * 0xbf58476d1ce4e5b9;
  id = (id ^ id >> 27) * 0x94d049bb133111eb;
  id ^= id >> 31;
  if (id == 0) id = 1;  // zero is not a valid id
  return absl::StrCat(absl::Hex(id, absl::kZeroPad16));
}

// Returns the trace that the client names, or nullopt if it names none, or more
// than one, or an invalid one.
std::optional<TraceContext> TraceOf(const grpc::CallbackServerContext& rpc) {
  const auto [begin, end] = rpc.client_metadata().equal_range(kTraceparent);
  if (begin == end || std::next(begin) != end) return std::nullopt;
  const grpc::string_ref value = begin->second;
  return ParseTraceparent({value.data(), value.size()});
}

int64_t Microseconds(std::chrono::nanoseconds time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time).count();
}

}  // namespace

CallRecord::CallRecord(ServiceMethod method, grpc::CallbackServerContext& rpc,
                       const ServiceContext& context)
    : CallRecord(MethodName(method), method, rpc, context.load, context.access,
                 context.spans) {}

CallRecord::CallRecord(std::string_view path, grpc::CallbackServerContext& rpc,
                       const AccessControl* access, SpanExporter* spans)
    : CallRecord(path, std::nullopt, rpc, nullptr, access, spans) {}

CallRecord::CallRecord(std::string_view name,
                       std::optional<ServiceMethod> method,
                       grpc::CallbackServerContext& rpc, LoadMeter* load,
                       const AccessControl* access, SpanExporter* spans)
    : name_(name),
      method_(method),
      rpc_(rpc),
      load_(load),
      spans_(spans),
      number_(NextNumber()),
      trace_(TraceOf(rpc)) {
  // gRPC forgets the peer of a call that is cancelled.
  if (spdlog::should_log(spdlog::level::debug)) {
    peer_ = rpc.peer();
    caller_ = IdentityOf(rpc, access).value_or("");
  }
}

void CallRecord::Finished(const absl::Status& status, const RunStats& stats,
                          const CallBytes& shared) {
  code_ = WireCode(status.code());
  if (status.ok()) {
    stats_ = stats;
  } else {
    reason_ = WireReason(status);
    rpc_.AddTrailingMetadata(kRequestId, id());
  }
  if (trace_) rpc_.AddTrailingMetadata(kTraceparent, Traceparent(span()));
  if (reason_ == kMalformedMessage && received_bytes_ == 0) {
    uncounted_ = status;
  } else {
    Count(status, stats, shared);
  }
}

void CallRecord::Count(const absl::Status& status, const RunStats& stats,
                       const CallBytes& shared) {
  if (load_ == nullptr) return;
  CallBytes bytes = shared;
  bytes.received = received_bytes_.load();
  bytes.sent = sent_bytes_.load();
  load_->Ended(*method_, status, age(), stats, bytes);
}

void CallRecord::Cancelled() {
  // A client ends its call at the deadline. The server sees that before its own
  // deadline, because gRPC rounds up the time that it sends to the server by up
  // to a hundredth, and because a busy server sees late that a call begins. Few
  // clients cancel a call that is about to expire.
  const SteadyTime deadline = DeadlineOf(rpc_);
  const SteadyTime now = std::chrono::steady_clock::now();
  const bool expired =
      deadline <= now || (deadline != SteadyTime::max() &&
                          deadline - now <= (deadline - begin_) / 20 +
                                                std::chrono::milliseconds(5));
  cancelled_as_ = expired ? absl::StatusCode::kDeadlineExceeded
                          : absl::StatusCode::kCancelled;
}

CallRecord::~CallRecord() {
  if (!uncounted_.ok()) {
    const absl::StatusCode code = cancelled_as_;
    Count(code == absl::StatusCode::kOk ? uncounted_ : absl::Status(code, ""),
          {}, {});
  }
  if (spdlog::should_log(spdlog::level::debug)) Log();
  if (spans_ != nullptr && trace_ && trace_->sampled) ExportSpan();
}

void CallRecord::Log() const {
  const absl::StatusCode code = ClientsCode();
  const std::string id = this->id();
  const std::string peer = PeerText(peer_.empty() ? rpc_.peer() : peer_);
  const std::string code_name = absl::StatusCodeToString(code);
  const TraceContext span = trace_ ? this->span() : TraceContext();
  std::vector<LogField> fields = {{"id", id}};
  if (trace_) {
    fields.push_back({"trace_id", span.trace_id});
    fields.push_back({"span_id", span.span_id});
  }
  fields.push_back({"method", absl::string_view(name_.data(), name_.size())});
  fields.push_back({"code", code_name});
  if (code == code_ && !reason_.empty()) fields.push_back({"reason", reason_});
  if (!caller_.empty()) fields.push_back({"caller", caller_});
  fields.push_back({"peer", peer});
  fields.push_back({"received_bytes", received_bytes_.load()});
  fields.push_back({"sent_bytes", sent_bytes_.load()});
  fields.push_back({"total_us", Microseconds(age())});
  fields.push_back({"queue_us", Microseconds(stats_.queue_time)});
  fields.push_back({"compute_us", Microseconds(stats_.compute_time)});
  LogFields(spdlog::level::debug, "request", fields);
}

void CallRecord::ExportSpan() const {
  const std::chrono::nanoseconds time = age();
  const std::string name(name_.substr(0, kMaxNameBytes));
  spans_->Export(
      {.context = span(),
       .parent_span_id = trace_->span_id,
       .method = method_ ? absl::StrCat(kService, "/", name) : Printable(name),
       .request_id = id(),
       .code = static_cast<int>(ClientsCode()),
       .begin = std::chrono::system_clock::now() -
                std::chrono::duration_cast<std::chrono::system_clock::duration>(
                    time),
       .time = time,
       .queue_time = stats_.queue_time,
       .compute_time = stats_.compute_time});
}

TraceContext CallRecord::span() const {
  return {.trace_id = trace_->trace_id,
          .span_id = SpanId(number_),
          .sampled = trace_->sampled};
}

std::string CallRecord::id() const {
  return absl::StrCat(
      absl::Hex(static_cast<uint32_t>(ProcessNumber()), absl::kZeroPad8), "-",
      number_);
}

absl::StatusCode CallRecord::ClientsCode() const {
  const absl::StatusCode cancelled_as = cancelled_as_;
  return cancelled_as == absl::StatusCode::kOk ? code_ : cancelled_as;
}

}  // namespace attnd::server
