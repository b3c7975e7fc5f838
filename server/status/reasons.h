// Every reason that ErrorInfo carries, for programs to branch on. Stable once
// released; a new one is added here and nowhere else.
#ifndef ATTND_SERVER_STATUS_REASONS_H_
#define ATTND_SERVER_STATUS_REASONS_H_

namespace attnd::server {

// INVALID_ARGUMENT: one field is wrong in itself; BadRequest names it.
inline constexpr char kInvalidField[] = "INVALID_FIELD";
// INVALID_ARGUMENT: the bytes are no message of the method's type.
inline constexpr char kMalformedMessage[] = "MALFORMED_MESSAGE";
// INVALID_ARGUMENT: the message has more fields, or more numbers in lists, than
// any request needs.
inline constexpr char kTooManyFields[] = "TOO_MANY_FIELDS";
// INVALID_ARGUMENT: a count or size of the problem does not fit an int64 is the
// core's kInt64RangeReason.
// RESOURCE_EXHAUSTED: the memory budget. With RetryInfo where waiting helps.
inline constexpr char kMemoryBudget[] = "MEMORY_BUDGET";
// RESOURCE_EXHAUSTED: --max-in-flight requests are here. With RetryInfo.
inline constexpr char kTooManyRequests[] = "TOO_MANY_REQUESTS";
// RESOURCE_EXHAUSTED: the response would exceed --max-message-bytes.
inline constexpr char kMessageTooLarge[] = "MESSAGE_TOO_LARGE";
// RESOURCE_EXHAUSTED: the system starts no thread for a benchmark. With
// RetryInfo.
inline constexpr char kThreadLimit[] = "THREAD_LIMIT";
// RESOURCE_EXHAUSTED: a Benchmark asked for more arithmetic than it may, or
// none of its repetitions ended within --max-benchmark-seconds.
inline constexpr char kWorkLimit[] = "WORK_LIMIT";
// UNIMPLEMENTED: in the contract, not in this build.
inline constexpr char kNotImplemented[] = "NOT_IMPLEMENTED";
// FAILED_PRECONDITION: the server was started without --shm-socket.
inline constexpr char kSharedMemoryOff[] = "SHARED_MEMORY_OFF";
// NOT_FOUND: no region has this handle (any more).
inline constexpr char kUnknownRegion[] = "UNKNOWN_REGION";
// UNAVAILABLE: the server is going down; another may serve the call.
inline constexpr char kDraining[] = "DRAINING";
// DEADLINE_EXCEEDED: the caller's deadline has passed; compute has stopped.
inline constexpr char kDeadlineExceeded[] = "DEADLINE_EXCEEDED";
// DEADLINE_EXCEEDED: a stream's client sent too little within
// --stream-idle-timeout. A client that does not read an answer is cut off; it
// reads CANCELLED from gRPC, without a reason.
inline constexpr char kStreamIdle[] = "STREAM_IDLE";
// CANCELLED: the caller, or a shutdown, gave the call up; compute has stopped.
inline constexpr char kCancelled[] = "CANCELLED";
// INTERNAL: a bug of attnd, and nothing else.
inline constexpr char kInternal[] = "INTERNAL";

}  // namespace attnd::server

#endif  // ATTND_SERVER_STATUS_REASONS_H_
