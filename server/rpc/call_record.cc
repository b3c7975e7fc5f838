#include "server/rpc/call_record.h"

#include <iterator>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/log/log_fields.h"
#include "server/rpc/rpc_adapter.h"
#include "server/status/status_convert.h"
#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

constexpr char kRequestId[] = "attnd-request-id";

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

// Returns the trace that the client names, with a span of this call. Returns
// nullopt if the client names none, or more than one, or an invalid one.
std::optional<TraceContext> TraceOf(const grpc::CallbackServerContext& rpc,
                                    uint64_t number) {
  const auto [begin, end] = rpc.client_metadata().equal_range(kTraceparent);
  if (begin == end || std::next(begin) != end) return std::nullopt;
  const grpc::string_ref value = begin->second;
  std::optional<TraceContext> trace =
      ParseTraceparent({value.data(), value.size()});
  if (trace) trace->span_id = SpanId(number);
  return trace;
}

int64_t Microseconds(std::chrono::nanoseconds time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time).count();
}

}  // namespace

CallRecord::CallRecord(ServiceMethod method, grpc::CallbackServerContext& rpc,
                       LoadMeter* load)
    : CallRecord(MethodName(method), method, rpc, load) {}

CallRecord::CallRecord(std::string_view path, grpc::CallbackServerContext& rpc)
    : CallRecord(path, std::nullopt, rpc, nullptr) {}

CallRecord::CallRecord(std::string_view name,
                       std::optional<ServiceMethod> method,
                       grpc::CallbackServerContext& rpc, LoadMeter* load)
    : name_(name),
      method_(method),
      rpc_(rpc),
      load_(load),
      number_(NextNumber()),
      trace_(TraceOf(rpc, number_)) {
  // gRPC forgets the peer of a call that is cancelled.
  if (spdlog::should_log(spdlog::level::debug)) peer_ = rpc.peer();
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
  if (trace_) rpc_.AddTrailingMetadata(kTraceparent, Traceparent(*trace_));
  if (load_ == nullptr) return;
  CallBytes bytes = shared;
  bytes.received = received_bytes_.load();
  bytes.sent = sent_bytes_.load();
  load_->Ended(*method_, status, age(), stats, bytes);
}

CallRecord::~CallRecord() {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  const absl::StatusCode code = cancelled_ ? CodeOfCancelled() : code_;
  const std::string id = this->id();
  const std::string peer = peer_.empty() ? rpc_.peer() : peer_;
  const std::string code_name = absl::StatusCodeToString(code);
  std::vector<LogField> fields = {{"id", id}};
  if (trace_) {
    fields.push_back({"trace_id", trace_->trace_id});
    fields.push_back({"span_id", trace_->span_id});
  }
  fields.push_back({"method", absl::string_view(name_.data(), name_.size())});
  fields.push_back({"code", code_name});
  if (code == code_ && !reason_.empty()) fields.push_back({"reason", reason_});
  fields.push_back({"peer", peer});
  fields.push_back({"received_bytes", received_bytes_.load()});
  fields.push_back({"sent_bytes", sent_bytes_.load()});
  fields.push_back({"total_us", Microseconds(age())});
  fields.push_back({"queue_us", Microseconds(stats_.queue_time)});
  fields.push_back({"compute_us", Microseconds(stats_.compute_time)});
  LogFields(spdlog::level::debug, "request", fields);
}

std::string CallRecord::id() const {
  return absl::StrCat(
      absl::Hex(static_cast<uint32_t>(ProcessNumber()), absl::kZeroPad8), "-",
      number_);
}

absl::StatusCode CallRecord::CodeOfCancelled() const {
  const SteadyTime deadline = DeadlineOf(rpc_);
  if (deadline == SteadyTime::max()) return absl::StatusCode::kCancelled;
  // A client ends its call at the deadline, and the server sees that before its
  // own deadline: gRPC rounds up the time that it sends to the server by up to
  // a hundredth.
  const auto rounded = (deadline - begin_) / 100 + std::chrono::milliseconds(1);
  return std::chrono::steady_clock::now() + rounded >= deadline
             ? absl::StatusCode::kDeadlineExceeded
             : absl::StatusCode::kCancelled;
}

}  // namespace attnd::server
