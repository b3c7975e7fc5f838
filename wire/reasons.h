// The reasons that an error's google.rpc.ErrorInfo carries, on which programs
// branch. A released reason never changes. A new one is added here and nowhere
// else. The reason of sizes that do not fit an int64, which core raises, is
// kInt64RangeReason in base/field_error.h.
#ifndef ATTND_WIRE_REASONS_H_
#define ATTND_WIRE_REASONS_H_

namespace attnd {

// INVALID_ARGUMENT: one field is wrong in itself. BadRequest names it.
inline constexpr char kInvalidField[] = "INVALID_FIELD";
// INVALID_ARGUMENT: the bytes are no message of the method's type.
inline constexpr char kMalformedMessage[] = "MALFORMED_MESSAGE";
// INVALID_ARGUMENT: the message has more fields, or more numbers in lists, than
// any request needs.
inline constexpr char kTooManyFields[] = "TOO_MANY_FIELDS";
// RESOURCE_EXHAUSTED: the call does not fit the memory budget. Comes with
// RetryInfo if waiting helps.
inline constexpr char kMemoryBudget[] = "MEMORY_BUDGET";
// RESOURCE_EXHAUSTED: the server already has --max-in-flight requests. Comes
// with RetryInfo.
inline constexpr char kTooManyRequests[] = "TOO_MANY_REQUESTS";
// RESOURCE_EXHAUSTED: the response would exceed --max-message-bytes, or, from
// the client library, the request would exceed the client's own limit.
inline constexpr char kMessageTooLarge[] = "MESSAGE_TOO_LARGE";
// RESOURCE_EXHAUSTED: the system starts no thread for a benchmark. Comes with
// RetryInfo.
inline constexpr char kThreadLimit[] = "THREAD_LIMIT";
// RESOURCE_EXHAUSTED: a Benchmark asked for more arithmetic than it may, or
// none of its repetitions ended within --max-benchmark-seconds.
inline constexpr char kWorkLimit[] = "WORK_LIMIT";
// UNIMPLEMENTED: the contract has it, but this build does not.
inline constexpr char kNotImplemented[] = "NOT_IMPLEMENTED";
// FAILED_PRECONDITION: the server was started without --shm-socket.
inline constexpr char kSharedMemoryOff[] = "SHARED_MEMORY_OFF";
// NOT_FOUND: no region has this handle, or no longer.
inline constexpr char kUnknownRegion[] = "UNKNOWN_REGION";
// UNAVAILABLE: the server is shutting down. Another may serve the call.
inline constexpr char kDraining[] = "DRAINING";
// DEADLINE_EXCEEDED: the caller's deadline has passed, so compute has stopped.
inline constexpr char kDeadlineExceeded[] = "DEADLINE_EXCEEDED";
// DEADLINE_EXCEEDED: a stream's client sent too little within
// --stream-idle-timeout. A client that does not read its answer is
// disconnected instead, and reads CANCELLED from gRPC, without a reason.
inline constexpr char kStreamIdle[] = "STREAM_IDLE";
// CANCELLED: the caller or a shutdown ended the call, so compute has stopped.
inline constexpr char kCancelled[] = "CANCELLED";
// INTERNAL: a bug of attnd, and nothing else.
inline constexpr char kInternal[] = "INTERNAL";
// INTERNAL, from the client library: the server's answer contradicts the
// contract.
inline constexpr char kBadResponse[] = "BAD_RESPONSE";

}  // namespace attnd

#endif  // ATTND_WIRE_REASONS_H_
