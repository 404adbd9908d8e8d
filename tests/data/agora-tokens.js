// Makes agora-tokens.json with the npm package agora-token, which is what an app's own server
// makes its tokens with:
//
//     npm install --prefix /tmp/agora agora-token@2.0.6
//     NODE_PATH=/tmp/agora/node_modules node tests/data/agora-tokens.js > tests/data/agora-tokens.json
//
// The clock is set to ISSUED, and the salt to SALT: the same input makes the same file.
'use strict'

const { AccessToken2, ServiceChat, ServiceRtc, ServiceRtm, ServiceStreaming, ServiceFpa,
        ServiceFCdn, ServiceApaas, ServiceRtm2 } = require('agora-token/src/AccessToken2')
const { ChatTokenBuilder } = require('agora-token/src/ChatTokenBuilder')
const { RtcTokenBuilder, Role } = require('agora-token/src/RtcTokenBuilder2')
const { version } = require('agora-token/package.json')

const APP = '970CA35de60c44645bbae8a215061b33'
const CERTIFICATE = '5CFd2fd1755d40ecb72977518be15d3b'
const OTHER_CERTIFICATE = '5CFd2fd1755d40ecb72977518be15d3c'
const ISSUED = 1800000000
const SALT = 0.25

Date.prototype.getTime = () => ISSUED * 1000
Math.random = () => SALT

function app (seconds) {
  const chat = new ServiceChat()
  chat.add_privilege(ServiceChat.kPrivilegeApp, seconds)
  return chat
}

function user (name, seconds) {
  const chat = new ServiceChat(name)
  chat.add_privilege(ServiceChat.kPrivilegeUser, seconds)
  return chat
}

function token (services, seconds = 3600, certificate = CERTIFICATE) {
  const made = new AccessToken2(APP, certificate, ISSUED, seconds)
  services.forEach(service => made.add_service(service))
  return made.build()
}

const rtc = new ServiceRtc('a channel', 7)
rtc.add_privilege(ServiceRtc.kPrivilegeJoinChannel, 600)
const rtm = new ServiceRtm('alice')
rtm.add_privilege(ServiceRtm.kPrivilegeLogin, 600)
const before = [rtc, rtm, new ServiceStreaming('a channel', 'alice'), new ServiceFpa()]
const after = [new ServiceFCdn('a channel', 'alice'), new ServiceApaas('room', 'alice', 1), new ServiceRtm2('alice')]

// `at`: seconds after the issue. `result`: what a check at that time says.
const cases = [
  ['an app token', ChatTokenBuilder.buildAppToken(APP, CERTIFICATE, 3600), 0, 'good'],
  ['an app token, in its last second', ChatTokenBuilder.buildAppToken(APP, CERTIFICATE, 3600), 3599, 'good'],
  ['an app token that is over', ChatTokenBuilder.buildAppToken(APP, CERTIFICATE, 3600), 3600, 'expired'],
  ['an app token for a day', ChatTokenBuilder.buildAppToken(APP, CERTIFICATE, 86400), 86399, 'good'],
  ['an app token for no time', ChatTokenBuilder.buildAppToken(APP, CERTIFICATE, 0), 0, 'expired'],
  ['an app token of a clock that is ahead', ChatTokenBuilder.buildAppToken(APP, CERTIFICATE, 3600), -60, 'good'],
  ['an app token of the future', ChatTokenBuilder.buildAppToken(APP, CERTIFICATE, 3600), -61, 'not valid yet'],
  ['an app token of another certificate', ChatTokenBuilder.buildAppToken(APP, OTHER_CERTIFICATE, 3600), 0, 'wrong signature'],
  ['a user token', ChatTokenBuilder.buildUserToken(APP, CERTIFICATE, 'alice', 3600), 0, 'without the app privilege'],
  ['a call token', RtcTokenBuilder.buildTokenWithUid(APP, CERTIFICATE, 'a channel', 7, Role.PUBLISHER, 3600, 3600), 0, 'not for the chat service'],
  ['an app token among others', token([...after, app(3600), ...before]), 0, 'good'],
  ['a user token among others', token([...after, user('alice', 3600), ...before]), 0, 'without the app privilege'],
  ['a user token and an app token in one', token([user('alice', 3600), app(3600)]), 0, 'good'],
  ['no app token, for all of these services', token([...after, ...before]), 0, 'not for the chat service'],
  ['an app privilege that ends first', token([app(60)]), 59, 'good'],
  ['an app privilege that has ended', token([app(60)]), 60, 'expired']
]

console.log(JSON.stringify({
  package: `agora-token ${version}`,
  app: APP,
  certificate: CERTIFICATE,
  issued: ISSUED,
  tokens: cases.map(([name, token, at, result]) => ({ name, token, at, result }))
}, null, 1))
