# attnd_test(NAME SOURCES ... LIBS ... [LABELS ...]): builds one GoogleTest program, and
# adds a ctest test for each of its test cases. Each has a time limit, in case it hangs.

include(GoogleTest)

function(attnd_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS;LABELS" ${ARGN})
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  add_executable(${name} ${arg_SOURCES})
  attnd_target(${name})
  target_link_libraries(${name} PRIVATE ${arg_LIBS} GTest::gmock_main)
  # Compiling a test takes longer than running it, and most of that time is for headers.
  # Sanitizers double it, so these builds compile several files together.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  if(ATTND_SANITIZE)
    set_target_properties(${name} PROPERTIES UNITY_BUILD ON)
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${arg_LABELS}" TIMEOUT 300)
endfunction()
