# attnd_test(NAME SOURCES ... LIBS ... [LABELS ...]): one GoogleTest binary,
# one ctest a test case, every one with a time limit against hangs.

include(GoogleTest)

function(attnd_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS;LABELS" ${ARGN})
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  add_executable(${name} ${arg_SOURCES})
  attnd_target(${name})
  target_link_libraries(${name} PRIVATE ${arg_LIBS} GTest::gmock_main)
  # Most of a test's time is its compiler's, and most of that is headers, which
  # sanitizers make twice as slow.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  if(ATTND_SANITIZE)
    set_target_properties(${name} PROPERTIES UNITY_BUILD ON)
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${arg_LABELS}" TIMEOUT 300)
endfunction()
